"""From filled buckets to a data set: copies of the same content, the shards' names, indexes, the list of refused files."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from data.ingest.splits import Video
from data.shards.columns import column_value
from data.shards.index_writer import write_index
from data.shards.writer import INDEX_COLUMNS, shard_name
from tae.runtime.files import flush, remove_leftovers
from tae.runtime.scratch import sort_on_disk

DUPLICATE = "same content as"
HASH_BYTES = 32  # of SHA-256


@dataclass(frozen=True)
class Bucket:
    """A filled bucket by its place: in its final form, without copies of files that are in others."""

    folder: Path
    name: str

    @property
    def stem(self) -> str:
        unique = f"{self.name}.unique"
        return unique if (self.folder / f"{unique}.json").exists() else self.name

    def read(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.stem}.json").read_text(encoding="utf-8"))


def find_copies(buckets: Sequence[Bucket]) -> np.ndarray:
    """Files whose content another file before them in the source has, too: (number of the bucket, file, the first one).

    Returns:
        int64 (n, 3), bucket by bucket.
    """
    copies, before, first = array("q"), b"", -1
    for content, file, bucket in sort_on_disk(_contents(buckets), key=itemgetter(0)):
        if content[:HASH_BYTES] == before:
            copies.extend((bucket, file, first))
        else:
            before, first = content[:HASH_BYTES], file
    found = np.frombuffer(copies, np.int64).reshape(-1, 3) if copies else np.zeros((0, 3), np.int64)
    return found[np.argsort(found[:, 0], kind="stable")]


def _contents(buckets: Sequence[Bucket]) -> Iterator[tuple[bytes, int, int]]:
    """Of each file that can be used: what sorts it by content and then by place, its place, the number of its bucket."""
    for number, bucket in enumerate(buckets):
        facts = json.loads((bucket.folder / f"{bucket.name}.json").read_text(encoding="utf-8"))
        for file, sha256, *_ in facts["files"]:
            if sha256:
                yield bytes.fromhex(sha256) + file.to_bytes(8, "big"), file, number


def find_refused(buckets: Sequence[Bucket], videos: Sequence[Video]) -> Iterator[tuple[str, str]]:
    """The files, and parts of files, that were refused when they were checked, with the reasons."""
    for bucket in buckets:
        for number, _, reason, left_out in bucket.read()["files"]:
            if reason:
                yield videos[number].path, reason
            yield from map(tuple, left_out)


class Entries:
    """What the index of a split says of its shards, read bucket by bucket each time that it is gone through."""

    def __init__(self, buckets: Sequence[Bucket], own_kinds: Mapping[str, str]) -> None:
        self._buckets = buckets
        self._own_kinds = own_kinds

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (entry for _, entry in self.with_buckets())

    def with_buckets(self) -> Iterator[tuple[Bucket, dict[str, Any]]]:
        """Each bucket that holds samples, with its entry."""
        number = 0
        for bucket in self._buckets:
            if entry := self._entry(bucket, shard_name(number)):  # what it is made of is gone before the next is read
                yield bucket, entry
                number += 1

    def _entry(self, bucket: Bucket, name: str) -> dict[str, Any]:
        """What the index says of a bucket; nothing where it holds no samples."""
        facts = bucket.read()
        if not (rows := facts["rows"]):
            return {}
        entry = {"name": name, "samples": len(rows), "bytes": facts["bytes"], "sha256": facts["sha256"]}
        entry |= {"frames": {row["key"]: row["frames"] for row in rows}, "offsets": [row["begin"] for row in rows]}
        entry |= {column: [row[column] for row in rows] for column in INDEX_COLUMNS if column != "frames"}
        own = {column: [column_value(row[column], kind) for row in rows] for column, kind in self._own_kinds.items()}
        return entry | {"columns": own}


def write_split(
    folder: Path, recipe: Mapping[str, Any], buckets: Sequence[Bucket], own_kinds: Mapping[str, str]
) -> int:
    """Give the shards of a split their final names and write the index; may be repeated after any interruption.

    Returns:
        The number of clips.
    """
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    entries = Entries(buckets, own_kinds)
    clips = 0
    for bucket, entry in entries.with_buckets():
        clips += entry["samples"]
        filled = bucket.folder / f"{bucket.stem}.tar"
        if filled.exists():
            filled.rename(folder / entry["name"])
    flush(folder)
    write_index(folder, {"split": folder.name, "recipe": dict(recipe)}, entries, own_kinds)
    return clips

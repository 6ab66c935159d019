"""From filled buckets to a data set: copies of the same content, the shards' names, indexes, the list of refused files."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.ingest.splits import Video
from data.shards.columns import column_value
from data.shards.index_writer import write_index
from data.shards.writer import INDEX_COLUMNS, shard_name
from tae.runtime.files import flush, remove_leftovers

DUPLICATE = "same content as"


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


def find_copies(buckets: Sequence[Bucket]) -> tuple[dict[Bucket, set[int]], dict[int, int]]:
    """Files whose content another file before them in the source has, too.

    Returns:
        For each bucket the files to leave out, and for each of these the first one of its content.
    """
    files, owners, hashes = array("q"), array("q"), bytearray()
    for owner, bucket in enumerate(buckets):
        for number, sha256, *_ in json.loads((bucket.folder / f"{bucket.name}.json").read_text())["files"]:
            if sha256:
                files.append(number)
                owners.append(owner)
                hashes += bytes.fromhex(sha256)
    numbers = np.frombuffer(files, np.int64) if files else np.zeros(0, np.int64)
    parts = np.frombuffer(hashes, np.uint64).reshape(-1, 4)
    order = np.lexsort((numbers, *parts.T))
    same = np.zeros(len(order), bool)
    same[1:] = (parts[order[1:]] == parts[order[:-1]]).all(1)
    first: dict[int, int] = {}
    left_out: dict[Bucket, set[int]] = {}
    for place in np.flatnonzero(same):
        number, before = int(numbers[order[place]]), int(numbers[order[place - 1]])
        first[number] = first.get(before, before)
        left_out.setdefault(buckets[owners[order[place]]], set()).add(number)
    return left_out, first


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
        filled = ((bucket, facts) for bucket in self._buckets if (facts := bucket.read())["rows"])
        for number, (bucket, facts) in enumerate(filled):
            rows = facts["rows"]
            entry = {"name": shard_name(number), "samples": len(rows)}
            entry |= {"bytes": facts["bytes"], "sha256": facts["sha256"]}
            entry |= {"frames": {row["key"]: row["frames"] for row in rows}, "offsets": [row["begin"] for row in rows]}
            entry |= {name: [row[name] for row in rows] for name in INDEX_COLUMNS if name != "frames"}
            own = {name: [column_value(row[name], kind) for row in rows] for name, kind in self._own_kinds.items()}
            yield bucket, entry | {"columns": own}


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

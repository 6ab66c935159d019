"""Samples to shards, see `data.shards` for what they are."""

import itertools
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import webdataset as wds

from data.shards.format import INDEX
from data.shards.index import read_index
from data.shards.index_writer import write_index, write_json
from data.storage.remote import Access
from tae.runtime.files import file_sha256, flush

INDEX_COLUMNS = {
    "frames": "num_frames",
    "fps": "fps",
    "width": "width",
    "height": "height",
}  # of the index, from the metadata


class ShardWriter:
    """Write samples into shards of about `shard_bytes`; a finished shard or index appears under its name at once.

    The same samples give the same bytes: times, owners and modes in the tar files are fixed.

    Args:
        resume: go on where a writer of the same samples was stopped in this folder: `holds` says which of them are in
            finished shards; the others are to be written in the same order as before.
    """

    def __init__(
        self, folder: Path, split: str, recipe: Mapping[str, Any], shard_bytes: int, resume: bool = False
    ) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.num_samples = 0
        self._header: dict[str, Any] = {"split": split, "recipe": dict(recipe)}
        self._samples: dict[str, dict[str, Any]] = {}  # of the shard that is being written
        self._tar: wds.TarWriter | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._finished = self._find_finished() if resume else []
        self._held = {key for entry in self._finished for key in entry["frames"]}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        elif self._tar is not None:  # what is half-written never gets a shard's name
            for half_written in (self._tar, self._file):
                with suppress(OSError):  # on a full disk closing fails too, as it writes what was buffered
                    half_written.close()
            self._partial.unlink(missing_ok=True)

    def holds(self, key: str) -> bool:
        """Whether a finished shard has this sample."""
        return key in self._held

    def write(self, key: str, extension: str, video: bytes, metadata: Mapping[str, Any]) -> None:
        """Add a sample; `metadata` needs at least `num_frames`."""
        if self._tar is None:
            self._open()
        assert self._tar is not None
        self._samples[key] = {"offsets": self._tar.tarstream.offset} | {
            column: metadata[name] for column, name in INDEX_COLUMNS.items() if name in metadata
        }
        text = json.dumps(metadata, sort_keys=True).encode()
        self._tar.write({"__key__": key, extension: video, "json": text})
        self.num_samples += 1
        if self._file.tell() >= self.shard_bytes:
            self._finish_shard()

    def close(self) -> None:
        """Finish the last shard and write the index."""
        if self._tar is not None:
            self._finish_shard()
        write_index(self.folder, self._header, self._finished)
        for entry in self._finished:
            self._entry_of(entry["name"]).unlink(missing_ok=True)

    def _find_finished(self) -> list[dict[str, Any]]:
        """What an earlier writer has finished: its index, or the entries that were to become one."""
        if (self.folder / INDEX).exists():
            index = read_index(str(self.folder / INDEX), "output", Access())
            return [index.entry(place) for place in range(len(index.names))]
        names = map(_name, itertools.count())
        done = itertools.takewhile(lambda name: self._entry_of(name).exists() and (self.folder / name).exists(), names)
        return [json.loads(self._entry_of(name).read_text()) for name in done]

    def _entry_of(self, name: str) -> Path:
        """Where a finished shard's part of the index lies until all are finished."""
        return self.folder / f".{name}.json"

    def _open(self) -> None:
        self._name = _name(len(self._finished))
        self._partial = self.folder / f".{self._name}.partial"
        self._file = self._partial.open("wb")
        self._tar = wds.TarWriter(self._file, encoder=False, mtime=0, user="", group="", mode=0o644)

    def _finish_shard(self) -> None:
        assert self._tar is not None
        self._tar.close()
        self._file.close()
        self._tar = None
        flush(self._partial)  # before any name says that it is there
        entry = {"name": self._name, "samples": len(self._samples), "bytes": self._partial.stat().st_size}
        entry |= {"sha256": file_sha256(self._partial)}
        entry |= {"frames": {key: sample["frames"] for key, sample in self._samples.items()}}
        for column in ("offsets", *INDEX_COLUMNS):
            if column != "frames" and all(column in sample for sample in self._samples.values()):
                entry[column] = [sample[column] for sample in self._samples.values()]
        self._finished.append(entry)
        self._held.update(self._samples)
        self._samples = {}
        write_json(self._entry_of(self._name), self._finished[-1])
        self._partial.rename(self.folder / self._name)


def _name(number: int) -> str:
    return f"shard-{number:06d}.tar"

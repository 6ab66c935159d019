"""Samples to shards, see `data.shards` for what they are."""

import hashlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.shards.index_writer import write_index
from tae.runtime.files import flush

INDEX_COLUMNS = {"frames": "num_frames", "fps": "fps", "width": "width", "height": "height"}  # from the metadata


class ShardFile:
    """A tar file that grows by whole samples, and knows its size and SHA-256 without being read again.

    The same samples give the same bytes: times, owners and modes are fixed.

    Args:
        path: of the file.
        size, digest: of its first samples, written before, which stay; what is behind them is cut off.
    """

    def __init__(self, path: Path, size: int = 0, digest: "hashlib._Hash | None" = None) -> None:
        self.path = path
        self.size = size
        self.digest = digest or hashlib.sha256()
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)

    def add(self, key: str, extension: str, content: bytes, metadata: Mapping[str, Any]) -> None:
        """Append a sample: its file, and the metadata as JSON, in the alphabetical order of their names."""
        members = {extension: content, "json": json.dumps(metadata, sort_keys=True).encode()}
        for name, data in sorted(members.items()):
            header = tarfile.TarInfo(f"{key}.{name}")
            header.size = len(data)
            self.append(header.tobuf(tarfile.USTAR_FORMAT))
            self.append(data)
            self.append(bytes(-len(data) % tarfile.BLOCKSIZE))

    def append(self, data: bytes) -> None:
        """Append bytes of samples as they lie in another shard."""
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """Hand all that was appended to the system, so that it outlives this process."""
        self._file.flush()

    def cut(self, size: int, digest: "hashlib._Hash") -> None:
        """Go back to an earlier size, at which the digest was a copy of this one."""
        self._file.flush()
        self._file.truncate(size)
        self._file.seek(size)
        self.size, self.digest = size, digest

    def finish(self) -> None:
        """Write the end of the tar file, and wait until all of it is on the disk."""
        end = 2 * tarfile.BLOCKSIZE
        self.append(bytes(end + -(self.size + end) % tarfile.RECORDSIZE))
        self._file.close()
        flush(self.path)  # before any name says that it is there

    def close(self) -> None:
        """Free the file, finished or not."""
        self._file.close()


class ShardWriter:
    """Write samples into shards of about `shard_bytes`; a finished shard or index appears under its name at once."""

    def __init__(self, folder: Path, split: str, recipe: Mapping[str, Any], shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self._header: dict[str, Any] = {"split": split, "recipe": dict(recipe)}
        self._samples: dict[str, dict[str, Any]] = {}  # of the shard that is being written
        self._shard: ShardFile | None = None
        self._finished: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.close()
        elif self._shard is not None:  # what is half-written never gets a shard's name
            self._shard.close()
            self._shard.path.unlink(missing_ok=True)

    def write(self, key: str, extension: str, content: bytes, metadata: Mapping[str, Any]) -> None:
        """Add a sample; `metadata` needs at least `num_frames`."""
        if self._shard is None:
            self._shard = ShardFile(self.folder / f".{shard_name(len(self._finished))}.partial")
        self._samples[key] = {"offsets": self._shard.size} | {
            column: metadata[name] for column, name in INDEX_COLUMNS.items() if name in metadata
        }
        self._shard.add(key, extension, content, metadata)
        if self._shard.size >= self.shard_bytes:
            self._finish_shard(self._shard)

    def close(self) -> None:
        """Finish the last shard and write the index."""
        if self._shard is not None:
            self._finish_shard(self._shard)
        write_index(self.folder, self._header, self._finished)

    def _finish_shard(self, shard: ShardFile) -> None:
        shard.finish()
        name = shard_name(len(self._finished))
        entry = {"name": name, "samples": len(self._samples), "bytes": shard.size, "sha256": shard.digest.hexdigest()}
        entry |= {"frames": {key: sample["frames"] for key, sample in self._samples.items()}}
        for column in ("offsets", *INDEX_COLUMNS):
            if column != "frames" and all(column in sample for sample in self._samples.values()):
                entry[column] = [sample[column] for sample in self._samples.values()]
        shard.path.rename(self.folder / name)
        self._finished.append(entry)
        self._samples = {}
        self._shard = None


def shard_name(number: int) -> str:
    """The name of a shard by its place in the index."""
    return f"shard-{number:06d}.tar"

"""A folder of downloaded shards that any number of processes share, of bounded size.

A shard's file is named by the SHA-256 of its content. The locks are on the files themselves (flock: they end with the
process that holds them), so that nothing is left to clean up after a crash:

    HASH.tar      shared by whoever reads it; whoever wants to delete it must get it alone, without waiting
    HASH.partial  held by the one process that downloads it, at full size from the start; the others wait for it
    lock          held while room is made, and while a file gets its final name
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

OURS = re.compile(r"[0-9a-f]{64}\.(tar|partial)")
COPY_BLOCK = 1 << 20


class DamagedError(OSError):
    """What was downloaded is not what the index describes."""


@dataclass(frozen=True)
class ShardCache:
    """At most `max_bytes` of shards in `folder`, on a disk of this machine; the longest unused go first."""

    folder: Path
    max_bytes: int

    def prepare(self) -> None:
        """Make the folder; OSError where that is not possible, or files in it cannot be written or locked."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            pass

    def open(self, sha256: str, size: int, source: Callable[[], BinaryIO]) -> BinaryIO | None:
        """The shard's file, downloaded and checked where it is not there yet; nobody deletes it before it is closed.

        Args:
            source: opens the original for reading.

        Returns:
            None where there is no room beside the shards that are being read at this moment.

        Raises:
            DamagedError: the original has another size or hash, twice.
            OSError: the original cannot be read.
        """
        path = self.folder / f"{sha256}.tar"
        while True:
            if (cached := _open_shared(path)) is not None:
                return cached
            partial = path.with_suffix(".partial")
            file = open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")  # noqa: SIM115, PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_deleted(file) or path.exists():  # another process was faster, or failed
                file.close()
                continue
            try:
                if not self._reserve(file, partial, size):
                    partial.unlink()
                    file.close()
                    return None
                _fill(file, sha256, size, source)
                with self._lock():  # who counts what is there must not miss it between its two names
                    partial.rename(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                file.close()
                raise
            fcntl.flock(file, fcntl.LOCK_SH)
            file.seek(0)
            return file

    def _reserve(self, file: BinaryIO, partial: Path, size: int) -> bool:
        """Delete what was not used for longest until `size` bytes fit, and take them; False where they never do."""
        with self._lock():
            others = [entry for path in self.folder.iterdir() if path != partial and (entry := _entry(path))]
            used = sum(entry.size for entry in others)
            for entry in sorted(others, key=lambda entry: entry.last_used):
                if used + size <= self.max_bytes:
                    break
                if _delete_unused(entry.path):
                    used -= entry.size
            return used + size <= self.max_bytes and _allocate(file, size)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    last_used: float


def _entry(path: Path) -> _Entry | None:
    """None for what is not ours, or is gone."""
    if not OURS.fullmatch(path.name):
        return None
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return _Entry(path, stat.st_size, stat.st_mtime)


def _open_shared(path: Path) -> BinaryIO | None:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)  # waits at most for somebody who is about to delete it
    if _is_deleted(file):
        file.close()
        return None
    os.utime(path)
    return file


def _is_deleted(file: BinaryIO) -> bool:
    return os.fstat(file.fileno()).st_nlink == 0


def _delete_unused(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):  # somebody reads it, or has just given it its final name
        return False
    return True


def _allocate(file: BinaryIO, size: int) -> bool:
    """Take the bytes of the disk now: False where it is full."""
    try:
        os.ftruncate(file.fileno(), 0)
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        return False
    return True


def _fill(file: BinaryIO, sha256: str, size: int, source: Callable[[], BinaryIO]) -> None:
    """Write the original to a file and on to the disk; once more from the start if it arrived damaged."""
    for last in (False, True):
        file.seek(0)
        digest, received = hashlib.sha256(), 0
        with source() as original:
            while block := original.read(COPY_BLOCK):
                file.write(block)
                digest.update(block)
                received += len(block)
        if received == size and digest.hexdigest() == sha256:
            file.flush()
            os.fsync(file.fileno())
            return
        if last:
            raise DamagedError(f"its {received} bytes are not the {size} bytes that its index describes, by their hash")

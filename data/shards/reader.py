"""Reading the samples of a shard, within bounds."""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from data.shards.format import MAX_HEADER_BYTES, MAX_JSON_BYTES, MAX_VIDEO_BYTES, MEDIA_EXTENSIONS, Shard
from data.shards.manifest import is_manifest, read_listed
from data.storage.remote import Access, open_file

CAPTION_FILE = "txt"
TEXTS = {"json", CAPTION_FILE}
READ = MEDIA_EXTENSIONS | TEXTS


@contextmanager
def open_samples(
    shard: Shard, wanted: set[str] | None, access: Access | None = None
) -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over the wanted samples of a shard, or over all.

    A sample is a dict with `__key__`, the video or image under its extension, `json` and `txt` where it has them, and
    `__offset__`, where it begins. The key is all of a member's name before its last extension.

    The other members are passed over without being read, and so is a `txt` of more than MAX_JSON_BYTES. A sample that breaks
    another bound has `__fault__` in the place of what breaks it.

    Raises:
        OSError, tarfile.TarError, ValueError: while iterating; the shard is damaged or cannot be reached.
    """
    with open_file(shard.url, access or Access(), shard.bytes, shard.sha256) as file:
        file.seek(0 if wanted is None else shard.begin_of(wanted))
        if is_manifest(shard.url):
            yield read_listed(file, wanted, access or Access())
        else:
            yield _read_samples(file, shard, wanted)


class _Headers:
    """What tarfile sees of a shard: it only reads headers, and these have a bound."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reads_at_end = 0

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._file.read(size)
        self._reads_at_end = 0 if data else self._reads_at_end + 1
        if self._reads_at_end > 2:  # tarfile goes on for ever where a list of sparse blocks is cut off
            raise tarfile.ReadError("a header is cut off")
        return data


def _read_samples(file: BinaryIO, shard: Shard, wanted: set[str] | None) -> Iterator[dict[str, Any]]:
    """Members of one key stand together; "r:" because what compressed data unpacks to has no bound."""
    sample: dict[str, Any] = {}
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        for member in _members(tar, file):
            key, _, extension = member.name.rpartition(".")
            extension = extension.lower()
            if (wanted is not None and key not in wanted) or extension not in READ:
                continue
            if extension == CAPTION_FILE and member.size > MAX_JSON_BYTES:
                continue  # no caption is so long
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            sample.setdefault("__key__", key)
            sample.setdefault("__offset__", member.offset)
            limit = MAX_JSON_BYTES if extension in TEXTS else MAX_VIDEO_BYTES
            if reason := _why_not(member, shard, extension in sample, limit):
                sample["__fault__"] = f"{member.name}: {reason}"
                continue
            file.seek(member.offset_data)
            sample[extension] = file.read(member.size)
            if len(sample[extension]) != member.size:
                raise EOFError(f"{member.name} is cut off")
        if sample:
            yield sample
        if shard.bytes is not None and shard.bytes - tar.offset > tarfile.RECORDSIZE:
            raise tarfile.ReadError(f"no further member can be found from byte {tar.offset} of {shard.bytes} on")


def _members(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Regular files only: no links, no devices, no sparse files, which unpack to any size."""
    end = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it keeps every header otherwise
        if member.size < 0 or tar.offset <= end:
            raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
        end = tar.offset
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None:
            yield member
        file.seek(end)  # or tarfile would go there by way of the byte before, which costs a remote file a request


def _why_not(member: tarfile.TarInfo, shard: Shard, again: bool, limit: int) -> str:
    if again:
        return "there twice"
    if member.size > limit:
        return f"{member.size} bytes, the limit is {limit}"
    if shard.bytes is not None and member.offset_data + member.size > shard.bytes:
        return f"{member.size} bytes, more than are left in the shard"
    return ""

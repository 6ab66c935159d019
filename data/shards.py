"""Shards on disk: WebDataset tar files beside an `index.json` that says what is in them.

A sample is two members of a tar file: `<key>.<ext>`, the original video file's bytes, and `<key>.json`, its metadata.
`index.json` lists every shard with its size, hash and the frames of each sample, so that a stream can be planned
without opening a single tar file.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import braceexpand

from data.storage import Access, beside, file_name, glob_s3, is_remote, open_file, scheme
from tae.errors import UserError

INDEX = "index.json"
INDEX_VERSION = 1
# Closed: nothing else in a shard is ever looked at, and nothing is unpickled.
VIDEO_EXTENSIONS = frozenset(
    ["3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"]
)
# Bounds, checked before memory is taken: shards and indexes may come from anybody.
MAX_INDEX_BYTES = 1 << 30  # some ten million clips in one folder
MAX_JSON_BYTES = 1 << 20  # a clip's metadata
MAX_VIDEO_BYTES = 4 << 30
MAX_HEADER_BYTES = 1 << 20  # a tar header's long names and attributes
MAX_FRAMES = 10_000_000  # of a clip: 46 hours at 60 frames a second
KEY = re.compile(r"[^./\\\x00-\x1f\x7f]{1,200}")  # keys become parts of file names
SHARD_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file and what its index says: `frames[key]` frames in sample `key`, in the order of the file."""

    url: str
    frames: Mapping[str, int]
    bytes: int | None = None
    sha256: str = ""


def find_shards(patterns: str | Sequence[str], option: str, access: Access | None = None) -> list[Shard]:
    """Resolve `data.shards.*` and check it against the indexes, without opening a shard.

    Args:
        patterns: brace patterns (`shard-{000000..000007}.tar`), globs, paths, http(s) and s3 addresses, or a list of
            these; where `access` allows it also `pipe:COMMAND`, whose command names the shard, so that the same command
            with `index.json` in its place prints the index.
        option: the option's name, for messages.

    Raises:
        UserError: nothing matches, a file or an index is missing, or the two do not fit together.
    """
    access = access or Access()
    urls = [url for pattern in _as_list(patterns) for url in _expand(pattern, option, access)]
    indexes = {url: _read_index(url, option, access) for url in dict.fromkeys(beside(url, INDEX) for url in urls)}
    shards = []
    for url in dict.fromkeys(urls):
        index_url = beside(url, INDEX)
        entry = indexes[index_url].get(file_name(url))
        if entry is None:
            raise UserError(
                f"{option}: {url} is not listed in {index_url}. The two do not belong together: "
                "prepare the folder again (python -m data.prepare)."
            )
        if not is_remote(url):
            _check_size(url, entry["bytes"], option)
        shards.append(Shard(url, entry["frames"], entry["bytes"], entry.get("sha256", "")))
    return shards


@contextmanager
def open_samples(shard: Shard, wanted: set[str], access: Access | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over the wanted samples of a shard: dicts with `__key__`, the video under its extension, and `json`.

    The other members are passed over without being read. A sample that breaks a bound has `__fault__` in the place of
    what breaks it.

    Raises:
        OSError, tarfile.TarError, ValueError: while iterating; the shard is damaged or cannot be reached.
    """
    with open_file(shard.url, access or Access(), shard.bytes, shard.sha256) as file:
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


def _read_samples(file: BinaryIO, shard: Shard, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Members of one key stand together; "r:" because what compressed data unpacks to has no bound."""
    sample: dict[str, Any] = {}
    with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        for member in _members(tar, file):
            key, _, extension = member.name.partition(".")
            extension = extension.lower()
            if key not in wanted or extension not in VIDEO_EXTENSIONS | {"json"}:
                continue
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            sample["__key__"] = key
            limit = MAX_JSON_BYTES if extension == "json" else MAX_VIDEO_BYTES
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


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _expand(pattern: str, option: str, access: Access) -> list[str]:
    """The paths or addresses that a pattern stands for."""
    kind = scheme(pattern)
    if kind not in ("", "http", "https", "s3", "pipe"):
        raise UserError(f"{option}={pattern}: only paths, http(s):// and s3:// addresses can be read.")
    if kind == "pipe" and not access.allow_pipe:
        raise UserError(
            f"{option}={pattern} would run a command. Set data.allow_pipe=true if it comes from you and is meant; else give "
            "paths, http(s):// or s3:// addresses."
        )
    try:
        urls = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{option}={pattern}: the braces do not pair up.") from error
    found = [match for url in urls for match in _glob(url, option, access)]
    missing = [path for path in found if not is_remote(path) and not Path(path).is_file()]
    if missing or not found:
        what = "nothing has such a name"
        if missing:
            what = f"{missing[0]} {'is a folder' if Path(missing[0]).is_dir() else 'does not exist'}"
        raise UserError(
            f"{option}={pattern} matches no shard: {what}{'' if kind else f' (looked for from {Path.cwd()})'}. "
            "Give a brace pattern, a glob, a list or an http(s) or s3 address of .tar files, as `python -m data.prepare` "
            "writes them."
        )
    return found


def _glob(pattern: str, option: str, access: Access) -> list[str]:
    """The sorted files that match; one without wildcards stands for itself, there or not."""
    kind = scheme(pattern)
    if kind == "pipe" and not file_name(pattern):
        raise UserError(
            f"{option}={pattern}: the command does not name a .tar file, beside which its {INDEX} would lie."
        )
    wildcards = {"http": "*", "https": "*", "pipe": ""}.get(kind, "*?[")
    if not any(character in pattern for character in wildcards):
        return [pattern]
    if kind in ("http", "https"):
        raise UserError(
            f"{option}={pattern}: http servers do not list files. Use braces: shard-{{000000..000007}}.tar."
        )
    if kind == "s3":
        try:
            return glob_s3(pattern, access.timeout)
        except UserError:
            raise
        except Exception as error:  # botocore's and aiohttp's errors have no common class
            raise UserError(f"{option}={pattern} cannot be listed: {type(error).__name__}: {error}") from error
    path = Path(pattern)
    return sorted(str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _read_index(url: str, option: str, access: Access) -> dict[str, dict[str, Any]]:
    """The shards of a folder by name."""
    try:
        with open_file(url, access) as file:
            text = file.read(MAX_INDEX_BYTES + 1)
        if len(text) > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES} bytes")
        index = read_json(text)
        if index.get("version") != INDEX_VERSION:
            raise UserError(f"{option}: {url} has version {index.get('version')}; this program reads {INDEX_VERSION}.")
        shards = {entry["name"]: entry for entry in index["shards"]}
        for entry in shards.values():
            _check_entry(entry)
    except OSError as error:
        raise UserError(
            f"{option}: {url} cannot be read ({error}). It lies beside the shards that `python -m data.prepare` wrote."
        ) from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{option}: {url} is not an index of shards ({error!r}). Prepare the folder again.") from error
    if not is_remote(url) and (gone := [name for name in shards if not Path(beside(url, name)).is_file()]):
        raise UserError(f"{option}: {url} lists {gone[0]}, which is not there ({len(gone)} shards are missing).")
    return shards


def read_json(text: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or is nested deeper than Python calls functions (about a thousand levels).
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _check_entry(entry: Mapping[str, Any]) -> None:
    name, frames = entry["name"], entry["frames"]
    if not SHARD_NAME.fullmatch(name) or name in (".", "..", INDEX):
        raise ValueError(f"{name!r} is not a name of a shard")
    if not _is_count(entry["bytes"]) or entry["samples"] != len(frames):
        raise ValueError(f"the entry of {name} contradicts itself")
    if not SHA256.fullmatch(entry.get("sha256", "0" * 64)):
        raise ValueError(f"{name} has no SHA-256 of 64 hexadecimal digits")
    if wrong := [key for key in frames if not KEY.fullmatch(key)]:
        raise ValueError(f"{name} has the key {wrong[0]!r}")
    if not all(_is_count(n) and 0 < n <= MAX_FRAMES for n in frames.values()):
        raise ValueError(f"{name} has frame counts that are not from 1 to {MAX_FRAMES}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _check_size(path: str, expected: int, option: str) -> None:
    size = Path(path).stat().st_size
    if size != expected:
        raise UserError(
            f"{option}: {path} has {size} bytes, its {INDEX} says {expected}. The shard is damaged or was exchanged: "
            "copy or prepare it again."
        )

"""Shards on disk: WebDataset tar files beside an `index.json` that says what is in them.

A sample is two members of a tar file: `<key>.<ext>`, the original video file's bytes, and `<key>.json`, its metadata.
`index.json` lists every shard with its size, hash and the frames of each sample, so that a stream can be planned
without opening a single tar file.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import braceexpand
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from tae.errors import UserError

INDEX = "index.json"
INDEX_VERSION = 1
# Closed: nothing else in a shard is ever looked at, and nothing is unpickled.
VIDEO_EXTENSIONS = frozenset(
    ["3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"]
)


@dataclass(frozen=True)
class Shard:
    """One tar file and what its index says: `frames[key]` frames in sample `key`, in the order of the file."""

    url: str
    frames: Mapping[str, int]


def find_shards(patterns: str | Sequence[str], option: str) -> list[Shard]:
    """Resolve `data.shards.*` and check it against the indexes, without opening a shard.

    Args:
        patterns: brace patterns (`shard-{000000..000007}.tar`), globs, paths, http(s) addresses, or a list of these.
        option: the option's name, for messages.

    Raises:
        UserError: nothing matches, a file or an index is missing, or the two do not fit together.
    """
    urls = [url for pattern in _as_list(patterns) for url in _expand(pattern, option)]
    indexes = {folder: _read_index(folder, option) for folder in dict.fromkeys(_parent(url) for url in urls)}
    shards = []
    for url in dict.fromkeys(urls):
        folder, name = _parent(url), url.rsplit("/", 1)[-1]
        if name not in indexes[folder]:
            raise UserError(
                f"{option}: {url} is not listed in {folder}/{INDEX}. The two do not belong together: "
                "prepare the folder again (python -m data.prepare)."
            )
        entry = indexes[folder][name]
        if not _is_remote(url):
            _check_size(url, entry["bytes"], option)
        shards.append(Shard(url, entry["frames"]))
    return shards


@contextmanager
def open_samples(shard: Shard, wanted: set[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """Iterate over the wanted samples of a shard: dicts with `__key__`, the video under its extension, and `json`.

    The other samples are passed over without being kept in memory.
    """

    def select(member: str) -> bool:
        return member.partition(".")[0] in wanted

    with gopen(shard.url) as stream:
        members = tar_file_expander([{"url": shard.url, "stream": stream}], select_files=select)
        yield group_by_keys(members, suffixes=VIDEO_EXTENSIONS | {"json"})


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _is_remote(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _parent(url: str) -> str:
    return url.rpartition("/")[0] if _is_remote(url) else PurePosixPath(url).parent.as_posix()


def _expand(pattern: str, option: str) -> list[str]:
    if pattern.startswith("pipe:") or ("://" in pattern and not _is_remote(pattern)):
        raise UserError(f"{option}={pattern}: only paths and http(s):// addresses can be read.")
    try:
        urls = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{option}={pattern}: the braces do not pair up.") from error
    if _is_remote(pattern):
        return urls
    found = [path for url in urls for path in _glob(url)]
    missing = [path for path in found if not Path(path).is_file()]
    if missing or not found:
        raise UserError(
            f"{option}={pattern} matches no shard: {missing[0] if missing else 'no such file'} does not exist under "
            f"{Path.cwd()}. Give a brace pattern, a glob, a list or an http(s) address of .tar files, "
            "as `python -m data.prepare` writes them."
        )
    return found


def _glob(pattern: str) -> list[str]:
    """The sorted paths that match; a path without wildcards stands for itself, there or not."""
    if not any(character in pattern for character in "*?["):
        return [pattern]
    path = Path(pattern)
    return sorted(str(match) for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _read_index(folder: str, option: str) -> dict[str, dict[str, Any]]:
    """The shards of a folder by name."""
    url = f"{folder}/{INDEX}"
    try:
        with gopen(url) as stream:
            index = json.loads(stream.read())
        shards = {entry["name"]: entry for entry in index["shards"]}
        for entry in shards.values():
            _check_entry(entry)
    except OSError as error:
        raise UserError(
            f"{option}: {url} cannot be read ({error}). It lies beside the shards that `python -m data.prepare` wrote."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{option}: {url} is not an index of shards ({error!r}). Prepare the folder again.") from error
    if index.get("version") != INDEX_VERSION:
        raise UserError(f"{option}: {url} has version {index.get('version')}; this program reads {INDEX_VERSION}.")
    if not _is_remote(url) and (gone := [name for name in shards if not Path(folder, name).is_file()]):
        raise UserError(f"{option}: {url} lists {gone[0]}, which is not there ({len(gone)} shards are missing).")
    return shards


def _check_entry(entry: Mapping[str, Any]) -> None:
    if not isinstance(entry["bytes"], int) or entry["samples"] != len(entry["frames"]):
        raise ValueError(f"the entry of {entry['name']} contradicts itself")
    if not all(isinstance(n, int) and n > 0 for n in entry["frames"].values()):
        raise ValueError(f"{entry['name']} has frame counts that are no positive integers")


def _check_size(path: str, expected: int, option: str) -> None:
    size = Path(path).stat().st_size
    if size != expected:
        raise UserError(
            f"{option}: {path} has {size} bytes, its {INDEX} says {expected}. The shard is damaged or was exchanged: "
            "copy or prepare it again."
        )

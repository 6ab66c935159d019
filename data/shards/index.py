"""Shards on disk: WebDataset tar files beside an `index.json` that says what is in them.

A sample is two members of a tar file: `<key>.<ext>`, the original video file's bytes, and `<key>.json`, its metadata.
`index.json` lists every shard with its size, hash and the frames of each sample, so that a stream can be planned
without opening a single tar file.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import braceexpand

from data.shards.format import (
    INDEX,
    INDEX_VERSION,
    KEY,
    MAX_FRAMES,
    MAX_INDEX_BYTES,
    SHA256,
    SHARD_NAME,
    Shard,
    read_json,
)
from data.storage.address import beside, file_name, is_remote, scheme
from data.storage.remote import Access, glob_s3, open_file
from tae.runtime.errors import UserError
from tae.runtime.paths import WILDCARDS, glob_files, to_path

OPTIONAL_COLUMNS = ("offsets", "fps", "width", "height")


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
    urls = _without_repeats(url for pattern in _as_list(patterns) for url in _expand(pattern, option, access))
    indexes = {url: _read_index(url, option, access) for url in dict.fromkeys(beside(url, INDEX) for url in urls)}
    shards = []
    for url in urls:
        index_url = beside(url, INDEX)
        entry = indexes[index_url].get(file_name(url))
        if entry is None:
            raise UserError(
                f"{option}: {url} is not listed in {index_url}. The two do not belong together: "
                "prepare the folder again (python -m data.prepare)."
            )
        if not is_remote(url):
            _check_size(url, entry["bytes"], option)
        offsets = tuple(entry.get("offsets", ()))
        shards.append(Shard(url, entry["frames"], entry["bytes"], entry.get("sha256", ""), offsets))
    return shards


def read_recipe(shard: Shard, access: Access) -> str:
    """How the folder of a shard was split, as its index says: "test of ucf101 (split group, seed 0)"."""
    with open_file(beside(shard.url, INDEX), access) as file:
        index = read_json(file.read(MAX_INDEX_BYTES))
    recipe = index.get("recipe")
    name = str(index.get("split", "not stated"))
    if not isinstance(recipe, Mapping):
        return name
    said = {key: value for key, value in recipe.items() if key not in ("dataset", "encoding", "shuffle")}
    parts = ", ".join(f"{key} {_in_words(value)}" for key, value in said.items())
    return f"{name} of {recipe.get('dataset', 'videos')} ({parts})"


def _in_words(value: Any) -> str:
    """A value of a recipe; of one for each split the numbers alone, in the usual order."""
    return "/".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)


def _without_repeats(urls: Iterable[str]) -> list[str]:
    """Each shard once, under its first path."""
    first: dict[str, str] = {}
    for url in urls:
        first.setdefault(url if is_remote(url) else os.path.realpath(url), url)
    return list(first.values())


def missing_shards(patterns: str | Sequence[str], option: str) -> str | None:
    """What is wrong with patterns of which no local shard is there; None if nothing is, or if they are elsewhere.

    Reads no index: a check of every split before a training has begun.
    """
    try:
        for pattern in _as_list(patterns):
            if scheme(pattern) == "":
                _expand(pattern, option, Access())
    except UserError as error:
        return str(error)
    return None


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
    if not kind and to_path(pattern).is_file():  # a name with braces in it
        return [str(to_path(pattern))]
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
    if not kind:
        return glob_files(pattern)
    wildcards = {"http": "*", "https": "*", "pipe": ""}.get(kind, WILDCARDS)
    if not any(character in pattern for character in wildcards):
        return [pattern]
    if kind in ("http", "https"):
        raise UserError(
            f"{option}={pattern}: http servers do not list files. Use braces: shard-{{000000..000007}}.tar."
        )
    try:
        return glob_s3(pattern, access.timeout)
    except UserError:
        raise
    except Exception as error:  # botocore's and aiohttp's errors have no common class
        raise UserError(f"{option}={pattern} cannot be listed: {type(error).__name__}: {error}") from error


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


def _check_entry(entry: Mapping[str, Any]) -> None:
    name, frames = entry["name"], entry["frames"]
    if not SHARD_NAME.fullmatch(name) or name in (".", "..", INDEX):
        raise ValueError(f"{name!r} is not a name of a shard")
    if not _is_count(entry["bytes"]) or entry["samples"] != len(frames):
        raise ValueError(f"the entry of {name} contradicts itself")
    for column in OPTIONAL_COLUMNS:
        if column in entry and (type(entry[column]) is not list or len(entry[column]) != len(frames)):
            raise ValueError(f"{name} has {column} that are not one for each sample")
    if not all(_is_count(offset) and offset < entry["bytes"] for offset in entry.get("offsets", ())):
        raise ValueError(f"{name} has offsets beyond its end")
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

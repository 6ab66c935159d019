"""Shards on disk: WebDataset tar files beside an `index.json` that says what is in them.

A sample is two members of a tar file: `<key>.<ext>`, the original video file's bytes, and `<key>.json`, its metadata.
`index.json` lists every shard with its size and hash, so that a stream can be planned without opening a single tar file.
What is in each sample stands there too (version 1), or in a table of columns beside it (version 2, `data.shards.columns`),
which is mapped into memory.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.shards.columns import NUMBER_TYPES, STRING, Column, Strings, files_of, map_column
from data.shards.format import (
    COLUMN_KINDS,
    COLUMN_NAME,
    INDEX,
    INDEX_VERSION,
    KEY,
    MAX_FRAMES,
    MAX_INDEX_BYTES,
    OPTIONAL_COLUMNS,
    SHA256,
    SHARD_NAME,
    TABLE,
    TABLE_VERSION,
    read_json,
)
from data.shards.patterns import expand_patterns
from data.shards.table import ShardIndex, ShardList
from data.storage.address import beside, file_name, is_remote
from data.storage.fetched import fetch_table
from data.storage.remote import Access, open_file
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path


def find_shards(
    patterns: str | Sequence[str], option: str, access: Access | None = None, index: str | None = None
) -> ShardList:
    """Resolve `data.shards.*` and check it against the indexes, without opening a shard.

    Args:
        patterns: brace patterns (`shard-{000000..000007}.tar`), globs, paths, http(s) and s3 addresses, or a list of
            these; where `access` allows it also `pipe:COMMAND`, whose command names the shard, so that the same command
            with `index.json` in its place prints the index.
        option: the option's name, for messages.
        index: folder or address of the index, where it does not lie beside the shards.

    Raises:
        UserError: nothing matches, a file or an index is missing, or the two do not fit together.
    """
    access = access or Access()
    urls = expand_patterns(patterns, option, access)
    elsewhere = None if index is None else f"{index if is_remote(index) else to_path(index)}/{INDEX}"
    addresses = {url: elsewhere or beside(url, INDEX) for url in urls}
    indexes = [read_index(address, option, access) for address in dict.fromkeys(addresses.values())]
    number_of = {index.url: number for number, index in enumerate(indexes)}
    place_of = [{name: place for place, name in enumerate(index.names[:])} for index in indexes]
    index_of, places = [], []
    for url, address in addresses.items():
        index_of.append(number_of[address])
        name = file_name(url)
        if elsewhere:
            name = url if is_remote(url) else os.path.realpath(url)
        place = place_of[index_of[-1]].get(name)
        if place is None:
            raise UserError(
                f"{option}: {url} is not listed in {address}. The two do not belong together: "
                "prepare the folder again (python -m data.prepare), or index it (python -m data.index)."
            )
        places.append(place)
    shards = ShardList(urls, indexes, index_of, places)
    for url, size in zip(urls, shards.sizes().tolist(), strict=True):
        if not is_remote(url):
            _check_size(url, size, option)
    return shards


def read_recipe(shards: ShardList, access: Access) -> str:
    """How the first of some shards was split, as its index says: "test of ucf101 (split group, seed 0)"."""
    with open_file(shards.indexes[shards.index_of[0]].url, access) as file:
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


def read_index(url: str, option: str, access: Access) -> ShardIndex:
    """What an index says, checked; `option` is what it was given as, for messages.

    Raises:
        UserError: there is none, or it contradicts itself.
    """
    try:
        with open_file(url, access) as file:
            text = file.read(MAX_INDEX_BYTES + 1)
        if len(text) > MAX_INDEX_BYTES:
            raise ValueError(f"it has more than {MAX_INDEX_BYTES} bytes")
        index = read_json(text)
        del text
        if index.get("version") not in (INDEX_VERSION, TABLE_VERSION):
            raise UserError(
                f"{option}: {url} has version {index.get('version')}; this program reads {INDEX_VERSION} and "
                f"{TABLE_VERSION}."
            )
        shards = {str(entry.get("url", entry["name"])): entry for entry in index["shards"]}
        for entry in shards.values():
            _check_entry(entry)
        columns = _columns_of(shards) if index["version"] == INDEX_VERSION else _map_table(url, index, shards, access)
        found = _index_of(url, shards, columns)
    except OSError as error:
        raise UserError(
            f"{option}: {url} cannot be read ({error}). It lies beside the shards that `python -m data.prepare` wrote; "
            "shards of others get one by `python -m data.index shards=PATTERN`."
        ) from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{option}: {url} is not an index of shards ({error!r}). Prepare the folder again.") from error
    if not is_remote(url):
        there = set(os.listdir(Path(url).parent))  # noqa: PTH208
        if gone := [name for name, entry in shards.items() if name not in there and "url" not in entry]:
            raise UserError(f"{option}: {url} lists {gone[0]}, which is not there ({len(gone)} shards are missing).")
    return found


def _index_of(url: str, shards: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Column]) -> ShardIndex:
    entries = shards.values()
    return ShardIndex(
        url=url,
        names=Strings.of(shards),
        bytes=np.array([entry["bytes"] for entry in entries], np.int64),
        sha256=Strings.of(entry.get("sha256", "") for entry in entries),
        ends=np.cumsum([entry["samples"] for entry in entries], dtype=np.int64),
        columns=columns,
    )


def _columns_of(shards: Mapping[str, Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of version 1, of those that all shards have."""
    entries = shards.values()
    columns: dict[str, Column] = {
        "frames": np.array([frames for entry in entries for frames in entry["frames"].values()], "uint32"),
        "key": Strings.of(key for entry in entries for key in entry["frames"]),
    }
    for column, name in OPTIONAL_COLUMNS.items():
        if all(column in entry for entry in entries):
            columns[name] = np.array([value for entry in entries for value in entry[column]], COLUMN_KINDS[name])
    return columns


def _map_table(
    url: str, index: Mapping[str, Any], shards: Mapping[str, Mapping[str, Any]], access: Access
) -> dict[str, Column]:
    """The columns of version 2, mapped; those of a remote index are fetched once for each machine."""
    kinds, files = index["columns"], index["files"]
    if missing := {"frames", "key"} - kinds.keys():
        raise ValueError(f"it has no column {min(missing)}")
    columns = {}
    for name, kind in kinds.items():
        if (
            not COLUMN_NAME.fullmatch(name)
            or kind not in (*NUMBER_TYPES, STRING)
            or COLUMN_KINDS.get(name, kind) != kind
        ):
            raise ValueError(f"{name!r} is no column of {kind!r}")
        paths = {}
        for file in files_of(name, kind):
            address = beside(url, f"{TABLE}/{file}")
            size, sha256 = files[file]["bytes"], files[file]["sha256"]
            if not _is_count(size) or not SHA256.fullmatch(sha256):
                raise ValueError(f"it does not say what {file} is")
            paths[file] = fetch_table(address, access, size, sha256) if is_remote(address) else Path(address)
        columns[name] = map_column(name, kind, sum(entry["samples"] for entry in shards.values()), paths)
    return columns


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Refuse an entry of either version that contradicts itself; only one of version 1 lists its samples."""
    name, frames = entry["name"], entry["frames"]
    if not SHARD_NAME.fullmatch(name) or name in (".", "..", INDEX):
        raise ValueError(f"{name!r} is not a name of a shard")
    if not _is_count(entry["bytes"]) or not _is_count(entry["samples"]):
        raise ValueError(f"the entry of {name} contradicts itself")
    if not SHA256.fullmatch(entry.get("sha256", "0" * 64)):
        raise ValueError(f"{name} has no SHA-256 of 64 hexadecimal digits")
    if not isinstance(frames, Mapping):
        return
    if entry["samples"] != len(frames):
        raise ValueError(f"the entry of {name} contradicts itself")
    for column in OPTIONAL_COLUMNS:
        if column in entry and (type(entry[column]) is not list or len(entry[column]) != len(frames)):
            raise ValueError(f"{name} has {column} that are not one for each sample")
    if not all(_is_count(offset) and offset < entry["bytes"] for offset in entry.get("offsets", ())):
        raise ValueError(f"{name} has offsets beyond its end")
    if wrong := [key for key in frames if not KEY.fullmatch(key)]:
        raise ValueError(f"{name} has the key {wrong[0]!r}")
    if not all(_is_count(n) and 0 < n <= MAX_FRAMES for n in frames.values()):
        raise ValueError(f"{name} has frame counts that are not from 1 to {MAX_FRAMES}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _check_size(path: str, expected: int, option: str) -> None:
    size = os.stat(path).st_size  # noqa: PTH116
    if size != expected:
        raise UserError(
            f"{option}: {path} has {size} bytes, its {INDEX} says {expected}. The shard is damaged or was exchanged: "
            "copy or prepare it again."
        )

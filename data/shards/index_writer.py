"""The index of a folder of shards to disk: a list of its samples, or a table where there are many."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.shards.columns import TableWriter
from data.shards.format import COLUMN_KINDS, INDEX, INDEX_VERSION, OPTIONAL_COLUMNS, TABLE, TABLE_VERSION
from tae.runtime.files import replacing

ENTRY = ("name", "url", "samples", "bytes", "sha256")
MAX_LISTED = 100_000  # samples, whose list everybody can read; a table takes a thousandth of the time and memory


def write_index(
    folder: Path,
    header: Mapping[str, Any],
    entries: Iterable[Mapping[str, Any]],
    own_kinds: Mapping[str, str] | None = None,
) -> None:
    """Write `index.json`, and the table that belongs to it where there are more than MAX_LISTED samples.

    Args:
        header: split and recipe.
        entries: of each shard `name`, `samples`, `bytes`, `sha256`, `frames` (key -> count), columns of its samples that
            have a meaning, and others under `columns`, as their names are anybody's. Gone through several times; need not be
            in memory all at once.
        own_kinds: types of those others, for which only a table has room.
    """
    samples, present = 0, set(OPTIONAL_COLUMNS)
    for entry in entries:
        samples += entry["samples"]
        present &= entry.keys()
    if samples <= MAX_LISTED and not own_kinds:
        listed = ({name: value for name, value in entry.items() if name != "columns"} for entry in entries)
        write_json(folder / INDEX, {"version": INDEX_VERSION} | dict(header), listed)
        return
    own = dict(own_kinds or {})
    optional = {column: name for column, name in OPTIONAL_COLUMNS.items() if column in present}
    kinds = {name: COLUMN_KINDS[name] for name in ("frames", "key", *optional.values())} | own
    rows = (
        {"frames": list(entry["frames"].values()), "key": list(entry["frames"])}
        | {name: entry[column] for column, name in optional.items()}
        | {name: entry["columns"][name] for name in own}
        for entry in entries
    )
    write_table(folder, header, entries, kinds, rows)  # in step, each from its own reading: two entries are in memory


def write_table(
    folder: Path,
    header: Mapping[str, Any],
    shards: Iterable[Mapping[str, Any]],
    kinds: Mapping[str, str],
    rows: Iterable[Mapping[str, Sequence[Any] | np.ndarray]],
) -> None:
    """Write an index of version 2: the columns, then `index.json`, which says what they are.

    Args:
        shards: of each shard `name`, `samples`, `bytes` and, where known, `sha256`; `url` where the index lies elsewhere.
        kinds: of the columns, see `data.shards.columns`; `frames` and `key` at least.
        rows: of each shard its samples' values in every column.
    """
    table = TableWriter(folder / TABLE, kinds)
    entries = []
    try:
        for shard, columns in zip(shards, rows, strict=True):
            table.append(columns)
            frames = int(np.sum(columns["frames"], dtype=np.int64))
            entries.append({name: shard[name] for name in ENTRY if name in shard})
            entries[-1]["frames"] = frames
        files = table.close()
    except BaseException:
        table.discard()
        raise
    samples = sum(entry["samples"] for entry in entries)
    index = {"version": TABLE_VERSION} | dict(header) | {"samples": samples, "columns": dict(kinds), "files": files}
    write_json(folder / INDEX, index, entries)


def write_json(path: Path, content: Mapping[str, Any], shards: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON whole or not at all: `content` and `shards` behind it, of which one is in memory at a time."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1).removesuffix("\n}") + ',\n "shards": [')
        separator = "\n  "
        for shard in shards:
            file.write(separator + json.dumps(shard, indent=1).replace("\n", "\n  "))
            separator = ",\n  "
        file.write("]\n}\n" if separator == "\n  " else "\n ]\n}\n")

"""Lists of videos: a text file with a path on each line, or a table with a column of paths and whatever else it says.

A table is a .csv, .tsv, .parquet, .jsonl (an object on each line) or .json (a list of objects). Columns that preparation
does not take for itself become fields of the samples' metadata and columns of the index.
"""

import ast
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data.ingest.check import Facts
from data.shards.columns import STRING, is_number
from data.shards.format import COLUMN_KINDS, COLUMN_NAME
from data.shards.metadata import CAPTION
from tae.runtime.errors import UserError, first_line
from tae.runtime.scratch import ScratchList

LIST_COLUMNS = ("path", "split", "label", "group", "caption", "start", "end")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".parquet", ".jsonl", ".json")
SPLIT_NAMES = {
    "train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val", "test": "test",
}  # fmt: skip
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(?P<part>\.\d+)?(?P<power>[eE][-+]?\d+)?")  # not 007, which is a name
MAX_DIGITS = 20  # of whole numbers that may be small enough for a column of numbers, with their sign
MAX_LIST_BYTES = 16 << 30  # a hundred million rows; whatever is larger was not meant as a list
PARQUET_ROWS = 1_000  # in memory at once
MAX_CELL = 1 << 20  # characters of a cell that holds a list
OWN_FIELDS = {
    *(entry.name for entry in fields(Facts)), *COLUMN_KINDS, "label", "group", "source", "shot", "source_sha256", "range",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A video of a list, or a part of one; what the list does not say is empty.

    path:       where relative, to the list's folder
    start, end: seconds of the file, where the video is only a part of it
    more:       further fields of the sample's metadata
    """

    path: str
    split: str = ""
    label: str = ""
    group: str = ""
    start: float | None = None
    end: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def read_list(
    path: Path, columns: Mapping[str, str | None] | None = None, explode: Sequence[str] = (),
    captions: Path | None = None,
) -> tuple[Iterable[Row], dict[str, str]]:  # fmt: skip
    """The videos that a file lists, in its order, and the types (`data.shards.columns`) of their further fields.

    Memory does not grow with the rows, but for a .json, which is read as a whole.

    Args:
        path: a table with a header; any other file has a path on each line.
        columns: what the columns of LIST_COLUMNS are called in this table, where not so. Text with names in braces is
            filled with a row's values, such as `videos/{folder}/{id}.mp4`. None: there is none.
        explode: columns whose cells hold lists; a row stands for a video for each of their elements, whose number is
            `{clip}` in `columns`.
        captions: of a list that is no table: a file with a caption on each of as many lines.

    Raises:
        UserError: the file cannot be read, has not the columns, or holds a value that cannot be what it should be.
    """
    try:
        if (size := path.stat().st_size) > MAX_LIST_BYTES:
            raise UserError(f"source={path} has {size / 1e9:.0f} GB, which is more than a list of videos may have.")
        if not is_table(path):
            return _read_lines(path, captions)
        if captions is not None:
            raise UserError(
                f"captions={captions} is for a list with a path on each line; columns.caption=NAME is for tables."
            )
        names = _check_columns(columns or {})
        header, cells = _read_table(path)
        _check_header(path, header, names, explode)
        further = _further_names(path, header, names)
        rows = ScratchList(
            _row(path, number, exploded, names, further)
            for number, row in enumerate(cells, 1)
            for exploded in _explode(path, number, row, explode)
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"source={path} cannot be read ({error}). A list is a text file with a path on each line, or a .csv, .tsv, "
            f".parquet, .jsonl or .json file with the columns {', '.join(LIST_COLUMNS)}, of which only path is needed."
        ) from error
    return _with_types(rows)


def _read_lines(path: Path, captions: Path | None) -> tuple[Iterable[Row], dict[str, str]]:
    lines = ScratchList(_lines_of(path))
    if captions is None:
        return map(Row, filter(None, lines)), {}
    texts = ScratchList(_lines_of(captions))  # one by one with the lines: an empty one is a caption, too
    videos, filled = _count_filled(lines), _count_filled(texts)
    if not filled <= videos <= len(texts):
        raise UserError(
            f"captions={captions} has {filled if filled > videos else len(texts)} lines, source={path} has {videos}. "
            "A video without a caption has an empty line."
        )
    pairs = zip(lines, texts, strict=False)  # only empty lines are beyond the shorter one
    return (Row(line, more={CAPTION: text}) for line, text in pairs if line or text), {CAPTION: STRING}


def _lines_of(path: Path) -> Iterator[str]:
    """The lines of a text without the space around them; only a newline ends one, as captions may hold U+2028 and others."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from map(str.strip, file)


def _count_filled(lines: Iterable[str]) -> int:
    """The number of lines but for empty ones at the end."""
    return max((number for number, line in enumerate(lines, 1) if line), default=0)


def _check_columns(columns: Mapping[str, str | None]) -> dict[str, str]:
    """What each column is called, of those that are not said to be missing."""
    if unknown := set(columns) - set(LIST_COLUMNS):
        raise UserError(f"columns.{min(unknown)} is unknown. Choose from: {', '.join(LIST_COLUMNS)}.")
    return {name: column for name in LIST_COLUMNS if (column := columns.get(name, name)) is not None}


def _read_table(path: Path) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    """The names of the columns, and the rows as they come."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            file = _parquet().ParquetFile(path)
        except ValueError as error:  # what pyarrow raises for files that are none
            raise UserError(f"source={path} cannot be read as a parquet file: {error}.") from error
        batches = file.iter_batches(batch_size=PARQUET_ROWS)
        return file.schema_arrow.names, (row for batch in batches for row in batch.to_pylist())
    if kind in DELIMITERS:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = _separated(lines, DELIMITERS[kind]).fieldnames
        return list(header or ()), _read_separated(path, DELIMITERS[kind])
    try:
        rows: Any = (
            ScratchList(map(json.loads, filter(None, _lines_of(path))))
            if kind == ".jsonl"
            else json.loads(path.read_text(encoding="utf-8-sig"))
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"source={path} cannot be read as {kind}: {first_line(error)}.") from error
    if not isinstance(rows, list | ScratchList) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"source={path} is no list of objects, one for each video.")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _read_separated(path: Path, delimiter: str) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(_separated(lines, delimiter), 1):
            if any(row.pop(None, ())):
                raise UserError(
                    f"source={path}: row {number} has more cells than the header. Quote text with {delimiter!r}."
                )
            yield row


def _separated(lines: Iterable[str], delimiter: str) -> "csv.DictReader[str]":
    """The rows by the names of their columns, both without the spaces that people put behind commas."""
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return reader


def _check_header(path: Path, found: Sequence[str], names: Mapping[str, str], explode: Sequence[str]) -> None:
    shown = ", ".join(map(str, found)) or "none"
    if twice := [column for column, count in Counter(found).items() if count > 1]:
        raise UserError(f"source={path} has several columns {twice[0]!r}; its columns are: {shown}.")
    for name, column in names.items():
        if "{" not in column and column not in found and (name == "path" or column != name):
            raise UserError(
                f"source={path} has no column {column!r}; its columns are: {shown}. "
                f"Name the one that is meant: columns.{name}=NAME."
            )
    if missing := [column for column in explode if column not in found]:
        raise UserError(f"explode: source={path} has no column {missing[0]!r}; its columns are: {shown}.")


def _further_names(path: Path, header: Sequence[str], names: Mapping[str, str]) -> dict[str, str]:
    """Column of the table -> field of the metadata, for columns that are not taken already."""
    taken = {CAPTION: "columns.caption"} if "caption" in names and names["caption"] in header else {}
    further = {}
    for column in header:
        if column in names.values() or not isinstance(column, str):
            continue
        name = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")[:50]
        name = f"list_{name}" if name in OWN_FIELDS or not COLUMN_NAME.fullmatch(name) else name
        if name in taken:
            raise UserError(f"source={path}: the columns {taken[name]!r} and {column!r} would both become {name!r}.")
        taken[name], further[column] = column, name
    return further


def _explode(path: Path, number: int, cells: Mapping[str, Any], columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """A row for each element of the lists in its cells; the row itself where none is to be taken apart."""
    if not columns:
        yield cells
        return
    lists = {column: _list_in(path, number, column, cells[column]) for column in columns}
    counts = {column: len(values) for column, values in lists.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{column} {count}" for column, count in counts.items())
        raise UserError(f"source={path}: row {number} has lists of different lengths ({said}).")
    for clip in range(counts[columns[0]]):
        yield {**cells, **{column: values[clip] for column, values in lists.items()}, "clip": clip}


def _list_in(path: Path, number: int, column: str, cell: Any) -> list[Any]:
    if isinstance(cell, str) and len(cell) <= MAX_CELL:
        try:
            cell = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            cell = None
    if not isinstance(cell, list | tuple):
        raise UserError(f"source={path}: row {number} has no list in {column}, which explode asks for.")
    return list(cell)


def _row(
    path: Path, number: int, cells: Mapping[str, Any], names: Mapping[str, str], further: Mapping[str, str]
) -> Row:
    values = {}
    stripped = {column: value.strip() if isinstance(value, str) else value for column, value in cells.items()}
    for name, column in names.items():
        if "{" in column:
            try:
                values[name] = column.format_map(stripped).strip()
            except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    f"columns.{name}={column} cannot be filled from row {number} of source={path} "
                    f"({type(error).__name__}: {error}); its columns are: {', '.join(map(str, cells))}."
                ) from error
        elif column in cells:
            values[name] = "" if stripped[column] is None else str(stripped[column]).strip()
    split = values.get("split", "")
    if split and split not in SPLIT_NAMES:
        raise UserError(
            f"source={path}: row {number} has the split {split!r}. Allowed are {', '.join(SPLIT_NAMES)}, and empty "
            "cells for videos that are to be left out."
        )
    start, end = (_seconds(path, number, values.pop(name, "")) for name in ("start", "end"))
    more = {name: cells.get(column) for column, name in further.items()}
    if "caption" in values:
        more[CAPTION] = values.pop("caption")
    return Row(**(values | {"split": SPLIT_NAMES.get(split, ""), "start": start, "end": end, "more": more}))  # type: ignore[arg-type]


def _seconds(path: Path, number: int, text: str) -> float | None:
    """Seconds, or H:MM:SS.mmm."""
    if not text:
        return None
    try:
        value = 0.0
        for part in text.split(":"):
            value = 60 * value + float(part)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(
            f"source={path}: row {number} has the time {text!r}. Times are seconds, or hours:minutes:seconds."
        )
    return value


def _with_types(rows: Sequence[Row]) -> tuple[Iterator[Row], dict[str, str]]:
    """The rows with numbers for numbers, in the fields that hold nothing else."""
    kinds: dict[str, str] = {}
    filled: set[str] = set()
    for row in rows:
        for name, value in row.more.items():
            kinds.setdefault(name, "float64")
            if value not in (None, ""):
                filled.add(name)
                if not is_number(_parsed(value)):
                    kinds[name] = STRING
    kinds = {name: kind if name in filled else STRING for name, kind in kinds.items()}
    typed = (replace(row, more={name: _typed(value, kinds[name]) for name, value in row.more.items()}) for row in rows)
    return typed, kinds


def _parsed(value: Any) -> Any:
    """A text that states a number as that number; everything else as it is, and what no column of numbers can hold."""
    if not isinstance(value, str) or not (match := NUMBER.fullmatch(text := value.strip())):
        return value
    if match["part"] or match["power"]:
        return float(text)
    return int(text) if len(text) <= MAX_DIGITS else value


def _typed(value: Any, kind: str) -> Any:
    if value is None or (kind != STRING and value == ""):
        return None
    if kind != STRING:
        return number if math.isfinite(number := _parsed(value)) else None
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            'Lists in .parquet need pyarrow: python -m pip install "temporal-autoencoder[parquet]". A .csv needs nothing.'
        ) from error
    return parquet

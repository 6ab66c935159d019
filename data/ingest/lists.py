"""Lists of videos: a text file with a path on each line, or a table with the columns path, split, label and group."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tae.runtime.errors import UserError

LIST_COLUMNS = ("path", "split", "label", "group")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".parquet")
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Row:
    """A video of a list; what the list does not say is empty. A path that is relative is so to the list's folder."""

    path: str
    split: str = ""
    label: str = ""
    group: str = ""


def is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES


def read_list(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """The videos that a file lists, in its order.

    Args:
        path: .csv, .tsv or .parquet with a header; any other file has a path on each line.
        columns: what the columns are called in this table, where not path, split, label and group.

    Raises:
        UserError: the file cannot be read, has no column of paths, or names a split that there is not.
    """
    try:
        if not is_table(path):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return [Row(line.strip()) for line in lines if line.strip()]
        names = _check_columns(columns or {})
        return [_row(path, number, cells, names) for number, cells in enumerate(_read_table(path, names), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"source={path} cannot be read ({error}). A list is a text file with a path on each line, or a .csv, .tsv or "
            f".parquet file with the columns {', '.join(LIST_COLUMNS)}, of which only path is needed."
        ) from error


def _check_columns(columns: Mapping[str, str]) -> dict[str, str]:
    if unknown := set(columns) - set(LIST_COLUMNS):
        raise UserError(f"columns.{min(unknown)} is unknown. Choose from: {', '.join(LIST_COLUMNS)}.")
    return {name: columns.get(name, name) for name in LIST_COLUMNS}


def _read_table(path: Path, names: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    if path.suffix.lower() == ".parquet":
        parquet = _parquet()
        try:
            file = parquet.ParquetFile(path)
            _check_header(path, file.schema_arrow.names, names)
            wanted = [name for name in names.values() if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
        except ValueError as error:  # what pyarrow raises for files that are none
            raise UserError(f"source={path} cannot be read as a parquet file: {error}.") from error
        return
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.DictReader(text, delimiter=DELIMITERS[path.suffix.lower()])
        _check_header(path, rows.fieldnames or [], names)
        yield from rows


def _check_header(path: Path, found: list[str] | Any, names: Mapping[str, str]) -> None:
    missing = [name for name, column in names.items() if column not in found and (name == "path" or column != name)]
    if missing:
        shown = ", ".join(map(str, found)) or "none"
        raise UserError(
            f"source={path} has no column {names[missing[0]]!r}; its columns are: {shown}. "
            f"Name the one that is meant: columns.{missing[0]}=NAME."
        )


def _row(path: Path, number: int, cells: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    values = {name: str(cells[column] or "").strip() for name, column in names.items() if column in cells}
    split = values.get("split", "")
    if split and split not in SPLIT_NAMES:
        raise UserError(
            f"source={path}: row {number} has the split {split!r}. Allowed are {', '.join(SPLIT_NAMES)}, and empty "
            "cells for videos that are to be left out."
        )
    return Row(**(values | {"split": SPLIT_NAMES.get(split, "")}))


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            'Lists in .parquet need pyarrow: python -m pip install "temporal-autoencoder[parquet]". A .csv needs nothing.'
        ) from error
    return parquet

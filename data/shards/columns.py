"""Columns of a table of samples: arrays in .npy files that are mapped into memory, so that a node holds them once.

A column of numbers is one file. A column of strings is two, as Arrow lays them out: the UTF-8 bytes of all of them, and
where each one ends. A process that is sent a mapped column gets its path, not its content.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from tae.runtime.files import file_sha256, flush

STRING = "string"
NUMBER_TYPES = ("uint32", "int64", "float64")
ENDS = "int64"  # of strings
MAX_WHOLE = 2**53  # float64 holds all whole numbers up to it, and not all beyond
MAX_STRING_BYTES = 1 << 20  # a longer one reads as an empty one: tables may come from anybody


class Array(Protocol):
    """What columns of numbers have in common with NumPy's arrays."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice) -> np.ndarray: ...


class MappedArray:
    """A one-dimensional .npy file of `length` numbers, mapped when it is first used; pickled as its path."""

    def __init__(self, path: Path, dtype: str, length: int | None = None) -> None:
        self.path = path
        self.dtype = dtype
        self.length = length
        self._array: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._mapped())

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._mapped()[rows]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_array": None}

    def _mapped(self) -> np.ndarray:
        if self._array is None:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if array.ndim != 1 or array.dtype != np.dtype(self.dtype) or self.length not in (None, len(array)):
                wanted = "any number" if self.length is None else self.length
                raise ValueError(f"{self.path.name} holds {array.dtype} {array.shape}, not {wanted} of {self.dtype}")
            self._array = np.asarray(array)  # a view whose slices cost a tenth of a memmap's
        return self._array


class Strings(Sequence[str]):
    """Strings in two arrays: all their bytes, and where each one ends."""

    def __init__(self, values: Array, ends: Array) -> None:
        self.values = values
        self.ends = ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Strings":
        """Strings in memory."""
        return cls(*_packed(texts))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.rows(*row.indices(len(self))[:2])
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.rows(row, row + 1)[0]

    def rows(self, start: int, stop: int) -> list[str]:
        """The strings from `start` up to `stop`."""
        begin = self.ends[start - 1 : start].tolist() if start else [0]
        bounds = begin + self.ends[start:stop].tolist()
        return [
            self.values[a:b].tobytes().decode(errors="replace") if 0 <= b - a <= MAX_STRING_BYTES else ""
            for a, b in pairwise(bounds)
        ]


Column = Array | Strings


def rows_of(column: Any, start: int, stop: int) -> list[Any]:
    """The values of a column from `start` up to `stop`, as Python's own."""
    return column.rows(start, stop) if isinstance(column, Strings) else column[start:stop].tolist()


def files_of(name: str, kind: str) -> dict[str, str]:
    """The files of a column of a kind, and the type of numbers in each; the main file first."""
    return {f"{name}.npy": "uint8", f"{name}.ends.npy": ENDS} if kind == STRING else {f"{name}.npy": kind}


def map_column(name: str, kind: str, rows: int, path_of: Mapping[str, Path]) -> Column:
    """A column on this machine's disk.

    Args:
        rows: that it must have.
        path_of: where its files (`files_of`) are.

    Raises:
        ValueError, OSError: a file is none of this type and length, or cannot be read.
    """
    *_, last = arrays = [
        MappedArray(path_of[file], dtype, None if kind == STRING and dtype == "uint8" else rows)
        for file, dtype in files_of(name, kind).items()
    ]
    for array in arrays:
        len(array)  # maps and checks it
    if kind != STRING:
        return last
    if rows and int(last[rows - 1 : rows][0]) != len(arrays[0]):
        raise ValueError(f"{name}.npy has {len(arrays[0])} bytes, its strings end elsewhere")
    return Strings(*arrays)


def is_number(value: Any) -> bool:
    """Whether float64 holds a value as it is meant: not a whole number of so many digits that some would be lost, an id."""
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_WHOLE
    )


def column_value(value: Any, kind: str) -> Any:
    """A field of a sample's metadata as a column holds it; what is missing is no number, or no text."""
    if kind != STRING:
        return math.nan if value is None else value
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


class TableWriter:
    """Write columns piece by piece, in constant memory.

    Args:
        folder: of the files.
        kinds: of each column: one of NUMBER_TYPES, or STRING.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, str]) -> None:
        self.folder = folder
        self.kinds = dict(kinds)
        folder.mkdir(parents=True, exist_ok=True)
        self._types = {file: dtype for name, kind in kinds.items() for file, dtype in files_of(name, kind).items()}
        self._counts = dict.fromkeys(self._types, 0)
        self._files: dict[str, IO[bytes]] = {file: self._draft(file).open("wb") for file in self._types}
        for file, stream in self._files.items():
            _write_header(stream, self._types[file], 0)

    def append(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        """Add rows: equally many values of every column."""
        for name, kind in self.kinds.items():
            if kind == STRING:
                values, ends = _packed(columns[name])
                self._add(f"{name}.ends.npy", ends + self._counts[f"{name}.npy"])
                self._add(f"{name}.npy", values)
            else:
                self._add(f"{name}.npy", np.asarray(columns[name], kind))

    def close(self) -> dict[str, dict[str, Any]]:
        """Finish the files and give each one its name: file -> its size and hash."""
        described = {}
        for file, stream in self._files.items():
            stream.seek(0)
            _write_header(stream, self._types[file], self._counts[file])
            stream.close()
            draft = self._draft(file)
            flush(draft)
            described[file] = {"bytes": draft.stat().st_size, "sha256": file_sha256(draft)}
            draft.replace(self.folder / file)
        return described

    def discard(self) -> None:
        """Leave nothing of what was begun."""
        for file, stream in self._files.items():
            stream.close()
            self._draft(file).unlink(missing_ok=True)

    def _draft(self, file: str) -> Path:
        return self.folder / f".{file}.partial"

    def _add(self, file: str, values: np.ndarray) -> None:
        self._files[file].write(values.astype(self._types[file], copy=False).tobytes())
        self._counts[file] += len(values)


def _packed(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode(errors="replace") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=ENDS) if encoded else np.zeros(0, ENDS)
    return np.frombuffer(b"".join(encoded), np.uint8), ends


def _write_header(stream: IO[bytes], dtype: str, length: int) -> None:
    """NumPy leaves room in it, so that a longer length takes the same bytes."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, header)

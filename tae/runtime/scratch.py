"""Lists, dictionaries and sorting in constant memory, for what grows with the number of files of a source.

The newest HELD items are in memory, the others in a temporary file without a name, which the system removes with the
process, however that ends. The environment variable TMPDIR says where.
"""

import heapq
import os
import pickle
import sqlite3
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from typing import IO, Any, Generic, TypeVar

from tae.runtime.errors import UserError

HELD = 20_000  # items in memory, for each list, dictionary or sorting
READ = 100  # items that are read at once

Item = TypeVar("Item")
Value = TypeVar("Value")


class ScratchList(Sequence[Item]):
    """A list of anything that can be pickled; of an item on disk 8 bytes are in memory."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._file: IO[bytes] | None = None
        self._ends = array("q", [0])  # where each item on disk ends in the file, behind the start of the first one
        self._held: list[Item] = []
        self.extend(items)

    def append(self, item: Item) -> None:
        """Add an item to the end."""
        self._held.append(item)
        if len(self._held) >= HELD:
            self._spill()

    def extend(self, items: Iterable[Item]) -> None:
        """Add items to the end, as they come."""
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return self._on_disk + len(self._held)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        place = place + len(self) if place < 0 else place
        if not 0 <= place < len(self):
            raise IndexError(place)
        return (
            self._held[place - self._on_disk] if place >= self._on_disk else pickle.loads(self._read(place, place + 1))
        )

    def __iter__(self) -> Iterator[Item]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[Item]:
        """The items from `start` up to `stop`, read a few at a time."""
        for first in range(start, min(stop, self._on_disk), READ):
            last = min(first + READ, stop, self._on_disk)
            content, begin = memoryview(self._read(first, last)), self._ends[first]
            for place in range(first, last):
                yield pickle.loads(content[self._ends[place] - begin : self._ends[place + 1] - begin])
        for place in range(max(start, self._on_disk), stop):
            yield self[place]

    @property
    def _on_disk(self) -> int:
        return len(self._ends) - 1

    def _read(self, start: int, stop: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), self._ends[stop] - self._ends[start], self._ends[start])

    def _spill(self) -> None:
        with _explained():
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            for item in self._held:
                self._ends.append(self._ends[-1] + self._file.write(pickle.dumps(item)))
            self._file.flush()
        self._held = []


class ScratchDict(Generic[Value]):
    """A dictionary from text to anything that can be pickled, but None."""

    def __init__(self) -> None:
        self._table: sqlite3.Connection | None = None
        self._held: dict[str, Value] = {}

    def add(self, key: str, value: Value) -> bool:
        """Give a key its value where it has none yet; whether that was so."""
        if self.get(key) is not None:
            return False
        self[key] = value
        return True

    def get(self, key: str) -> Value | None:
        """The value of a key, None where it has none."""
        if key in self._held or self._table is None:
            return self._held.get(key)
        row = self._table.execute("SELECT content FROM item WHERE key = ?", (_to_bytes(key),)).fetchone()
        return None if row is None else pickle.loads(row[0])

    def __setitem__(self, key: str, value: Value) -> None:
        self._held[key] = value
        if len(self._held) >= HELD:
            self._spill()

    def _spill(self) -> None:
        rows = sorted((_to_bytes(key), pickle.dumps(value)) for key, value in self._held.items())
        with _explained():
            if self._table is None:
                self._table = sqlite3.connect("", check_same_thread=False)  # a file without a name
                weakref.finalize(self, self._table.close)
                self._table.execute("PRAGMA journal_mode = OFF")
                self._table.execute("CREATE TABLE item (key BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID")
            self._table.executemany("INSERT OR REPLACE INTO item VALUES (?, ?)", rows)
        self._held = {}


def sort_on_disk(items: Iterable[Item], key: Callable[[Item], Any]) -> Iterator[Item]:
    """The items as `sorted(items, key=key)` has them: runs that fit in memory are sorted, and merged from disk."""
    items = iter(items)
    runs: ScratchList[Item] = ScratchList()
    starts = [0]
    while run := sorted(islice(items, HELD), key=key):
        runs.extend(run)
        starts.append(len(runs))
    return heapq.merge(*map(runs.between, starts, starts[1:]), key=key)


def group_on_disk(items: Iterable[Item], key: Callable[[Item], Any]) -> Iterator[list[Item]]:
    """The items of each key; keys in the order of their first items."""

    def key_of(numbered: tuple[int, Item]) -> Any:
        return key(numbered[1])

    ordered = groupby(sort_on_disk(enumerate(items), key_of), key_of)
    groups = sort_on_disk((list(members) for _, members in ordered), key=lambda members: members[0][0])
    return ([item for _, item in members] for members in groups)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise UserError(
            f"Temporary files cannot be written in {tempfile.gettempdir()} ({error}). Make room there, or name another "
            "folder: TMPDIR=DIR before the command."
        ) from error


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names of files need not be UTF-8

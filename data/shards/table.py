"""The shards of a split and their samples, in columns: no Python object for a sample until somebody asks for it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from data.shards.columns import Column, Strings, rows_of
from data.shards.format import MAX_FRAMES, OPTIONAL_COLUMNS, Shard

KEPT_SHARDS = 4  # with their keys and frames: clips are asked for shard after shard


@dataclass(frozen=True)
class ShardIndex:
    """What one index says: its shards in its order, and a row for each of their samples.

    Args:
        url: of the index.
        names: of each shard; where the index lies elsewhere, their addresses.
        bytes, sha256: of each shard; -1 bytes and an empty hash are unknown.
        ends: row after the last sample of each shard.
        columns: of the samples: `frames` and `key`, and where it has them `offset`, `fps`, `width`, `height` and others.
    """

    url: str
    names: Strings
    bytes: np.ndarray
    sha256: Strings
    ends: np.ndarray
    columns: Mapping[str, Column]

    def rows(self, place: int) -> range:
        """The rows of a shard."""
        return range(int(self.ends[place - 1]) if place else 0, int(self.ends[place]))

    def entry(self, place: int) -> dict[str, Any]:
        """What an index of version 1 says of a shard."""
        rows = self.rows(place)
        entry = {"name": self.names[place], "samples": len(rows), "bytes": int(self.bytes[place])}
        entry |= {"sha256": self.sha256[place]} if self.sha256[place] else {}
        entry["frames"] = dict(zip(self.column("key", rows), self.column("frames", rows), strict=True))
        listed = {column: self.column(name, rows) for column, name in OPTIONAL_COLUMNS.items() if name in self.columns}
        return entry | listed

    def column(self, name: str, rows: range) -> list[Any]:
        """Values of a column, none where the index has no such column."""
        return rows_of(self.columns[name], rows.start, rows.stop) if name in self.columns else []


class ShardList(Sequence[Shard]):
    """Shards of one or several indexes, in the order of a split; each is made when it is asked for.

    Args:
        urls: of the shards.
        indexes: that list them.
        index_of: for each shard the number of its index.
        places: for each shard its place in that index.
    """

    def __init__(
        self, urls: Sequence[str], indexes: Sequence[ShardIndex], index_of: Sequence[int], places: Sequence[int]
    ) -> None:
        self.urls = urls if isinstance(urls, Strings) else Strings.of(urls)
        self.indexes = tuple(indexes)
        self.index_of = np.asarray(index_of, np.int32)
        self.places = np.asarray(places, np.int64)
        self._kept: dict[int, Shard] = {}

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "ShardList":
        """The list of shards that are there as objects."""
        frames = [count for shard in shards for count in shard.frames.values()]
        keys = Strings.of(key for shard in shards for key in shard.frames)
        index = ShardIndex(
            url="",
            names=Strings.of(shard.url for shard in shards),
            bytes=np.array([-1 if shard.bytes is None else shard.bytes for shard in shards], np.int64),
            sha256=Strings.of(shard.sha256 for shard in shards),
            ends=np.cumsum([len(shard.frames) for shard in shards], dtype=np.int64),
            columns={"frames": np.array(frames, np.uint32), "key": keys},
        )
        return cls([shard.url for shard in shards], [index], [0] * len(shards), range(len(shards)))

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": {}}

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number not in self._kept:
            while len(self._kept) >= KEPT_SHARDS:
                self._kept.pop(next(iter(self._kept)), None)  # by now another thread may have
            self._kept[number] = self._make(number)
        return self._kept[number]

    def _make(self, number: int) -> Shard:
        index, place = self.indexes[self.index_of[number]], int(self.places[number])
        rows = index.rows(place)
        keys = index.column("key", rows)
        if len(set(keys)) < len(keys):  # no index should say that; all but the first will be found missing
            first = {key: i for i, key in reversed(list(enumerate(keys)))}
            keys = [key if first[key] == i else f"{key}\0{i}" for i, key in enumerate(keys)]
        known = {}
        if "reader" in index.columns:
            facts = zip(index.column("fps", rows), index.column("reader", rows), strict=True)
            known = dict(zip(keys, facts, strict=True))
        return Shard(
            url=self.urls[number],
            frames=dict(zip(keys, index.column("frames", rows), strict=True)),
            bytes=None if index.bytes[place] < 0 else int(index.bytes[place]),
            sha256=index.sha256[place],
            offsets=tuple(index.column("offset", rows)),
            known=known,
        )

    def samples(self) -> np.ndarray:
        """Number of samples of each shard."""
        sizes = [np.diff(index.ends, prepend=0) for index in self.indexes]
        return self._of_each_shard(sizes, np.int64)

    def numbers(self, name: str, number: int) -> np.ndarray:
        """A column of a shard's samples."""
        index = self.indexes[self.index_of[number]]
        rows = index.rows(int(self.places[number]))
        column = index.columns[name]
        assert not isinstance(column, Strings)
        return column[rows.start : rows.stop]

    def contents(self) -> Iterator[tuple[int, str]]:
        """Size and hash of each shard, without its samples."""
        of_index = [(index.bytes.tolist(), index.sha256[:]) for index in self.indexes]
        for index, place in zip(self.index_of.tolist(), self.places.tolist(), strict=True):
            sizes, hashes = of_index[index]
            yield sizes[place], hashes[place]

    def sizes(self) -> np.ndarray:
        """Bytes of each shard."""
        return self._of_each_shard([index.bytes for index in self.indexes], np.int64)

    def _of_each_shard(self, of_indexes: Sequence[np.ndarray], dtype: type) -> np.ndarray:
        values: np.ndarray = np.zeros(len(self), dtype)
        for number, of_index in enumerate(of_indexes):
            mine = self.index_of == number
            values[mine] = of_index[self.places[mine]]
        return values


class Rule(Protocol):
    """Something that used samples have in common; needs some columns of numbers, and is named by some settings."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def settings(self) -> dict[str, str]: ...
    def of(self, shards: ShardList, number: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Selection:
    """Which samples are used.

    Args:
        shortest: frames of the shortest.
        bounds: lowest and highest value of a column of numbers; None has no bound. A value that is not a number is outside.
        rules: what else they have to have.
    """

    shortest: int = 1
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def within(self, shards: ShardList, number: int) -> np.ndarray:
        """Which samples of a shard are within all bounds, whatever their length."""
        chosen = np.ones(len(shards.numbers("frames", number)), bool)
        for name, (low, high) in self.bounds.items():
            values = shards.numbers(name, number)
            if low is not None:
                chosen &= values >= low
            if high is not None:
                chosen &= values <= high
        return chosen

    def of(self, shards: ShardList, number: int) -> np.ndarray:
        """Which samples of a shard are used."""
        chosen = self.within(shards, number) & (shards.numbers("frames", number) >= self.shortest)
        for rule in self.rules:
            chosen &= rule.of(shards, number)
        return chosen


@dataclass(frozen=True)
class Selected:
    """What a selection takes.

    counts:   samples of each shard that are used
    outside:  samples that are not within the bounds
    longest:  frames of the longest sample within the bounds
    """

    counts: np.ndarray
    outside: int
    longest: int


def select(shards: ShardList, selection: Selection) -> Selected:
    """Look at all samples, shard by shard, so that a mapped column is never in memory as a whole.

    Raises:
        ValueError: a count of frames is beyond all use.
    """
    counts, outside, longest = np.zeros(len(shards), np.int64), 0, 0
    for number in range(len(shards)):
        frames = shards.numbers("frames", number)
        if not len(frames):
            continue
        least, most = int(frames.min()), int(frames.max())
        if not 0 < least <= most <= MAX_FRAMES:
            raise ValueError(f"{shards.urls[number]} has frame counts that are not from 1 to {MAX_FRAMES}")
        if selection.bounds:
            frames = frames[selection.within(shards, number)]
            outside += len(shards.numbers("frames", number)) - len(frames)
            most = int(frames.max(initial=0))
        longest = max(longest, most)
        if selection.rules:
            counts[number] = np.count_nonzero(selection.of(shards, number))
            continue
        counts[number] = len(frames) if least >= selection.shortest else np.count_nonzero(frames >= selection.shortest)
    return Selected(counts, outside, longest)

"""The usable clips of a split, numbered, without an object for each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from data.sampling.types import Clip
from data.shards.format import KEY, Shard
from data.shards.keys import safe_name, unique_names
from data.shards.table import Selection, ShardList

EVERYTHING = Selection()


class ClipTable(Sequence[Clip]):
    """Clips by their number: the samples with enough frames, shard after shard. A clip is made when it is asked for.

    Args:
        shards: of the split.
        counts: usable clips in each shard.
        selection: which those are.
        aliases: names of clips whose key is not one, by number.
    """

    def __init__(
        self,
        shards: ShardList,
        counts: np.ndarray,
        selection: Selection = EVERYTHING,
        aliases: Mapping[int, str] | None = None,
    ) -> None:
        self.shards = shards
        self.counts = counts
        self.selection = selection
        self.aliases = aliases or {}
        self._ends = np.cumsum(counts)
        self._samples = shards.samples()
        self._current: _OpenShard | None = None

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> "ClipTable":
        """All samples of shards that are there as objects."""
        listed = ShardList.of(shards)
        return cls(listed, listed.samples())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_current": None}

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self.clip(i) for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self.clip(int(number))

    def __iter__(self) -> Iterator[Clip]:
        return (self.clip(number) for number in range(len(self)))

    def clip(self, number: int, turn: int = 0) -> Clip:
        """The clip of a number, taken for the `turn`-th time in its epoch."""
        current = self._current
        if current is None or number not in current.numbers:
            current = self._current = self._open(int(np.searchsorted(self._ends, number, side="right")))
        key = current.keys[number - current.numbers.start]
        alias = self.aliases.get(number) or ("" if KEY.fullmatch(key) else safe_name(key) or "video")
        return Clip(number, key, current.shard, turn, alias)

    def named(self) -> "ClipTable":
        """The same clips, no two of which have one name; for sets that are evaluated, as it looks at every key."""
        pairs = [(clip.name, clip.shard) for clip in self]
        names = enumerate(zip(pairs, unique_names(pairs), strict=True))
        aliases = {number: name for number, ((own, _), name) in names if name != own}
        return ClipTable(self.shards, self.counts, self.selection, aliases)

    def _open(self, number: int) -> "_OpenShard":
        shard = self.shards[number]
        keys = list(shard.frames)
        if self.counts[number] < self._samples[number]:
            keys = list(compress(keys, self.selection.of(self.shards, number)))
        end = int(self._ends[number])
        return _OpenShard(shard, keys, range(end - len(keys), end))


@dataclass(frozen=True)
class _OpenShard:
    """The shard that clips were last asked for, its usable keys and their clips' numbers."""

    shard: Shard
    keys: Sequence[str]
    numbers: range

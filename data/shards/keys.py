"""Keys of samples: letters, digits, `_` and `-` only, each once."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from data.shards.format import Shard
from tae.runtime.scratch import ScratchDict

KEY_LENGTH = 80  # a ustar member's name holds 100 characters


class UniqueKeys:
    """Gives out keys, none twice; each in constant time, however many names are equal, and all in constant memory."""

    def __init__(self) -> None:
        self._taken: ScratchDict[int] = ScratchDict()  # with the highest number given to each; all below it are taken

    def claim(self, name: str, endings: Sequence[str] = ()) -> str:
        """The key for a file name: itself where that is possible, else with a number behind it.

        Args:
            endings: of a file that becomes several samples, what each one's key has behind that of the file. No other file
                gets one of these keys.
        """
        base = safe_name(name)[:KEY_LENGTH] or "video"
        key, number = base, self._taken.get(base) or 0
        while (number and self._taken.get(key)) or any(self._taken.get(key + ending) for ending in endings):
            number = max(number, 1) + 1
            key = f"{base}-{number}"
        for taken in (key, *(key + ending for ending in endings)):
            self._taken[taken] = 1
        if number:
            self._taken[base] = number
        return key


def safe_name(text: str) -> str:
    """A text in the characters of keys."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_text).strip("_")


def unique_names(samples: Sequence[tuple[str, Shard]]) -> list[str]:
    """A name for each (key, shard): its key where no other shard has that, else with what tells the shards' paths apart."""
    counts = Counter(key for key, _ in samples)
    if len(counts) == len(samples):
        return [key for key, _ in samples]
    urls = list(dict.fromkeys(shard.url for key, shard in samples if counts[key] > 1))
    tags = dict(zip(urls, distinctions(urls), strict=True))
    taken = {key for key, count in counts.items() if count == 1}
    names = []
    for key, shard in samples:
        name = key
        if counts[key] > 1:
            base = name = f"{tags[shard.url]}_{key}"
            number = 1
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(name)
        names.append(name)
    return names


def distinctions(paths: Sequence[str]) -> list[str]:
    """The part of each path that is between what all begin with and what all end with, in the characters of keys."""
    parts = [path.removesuffix(".tar").split("/") for path in paths]
    begin = _common(parts)
    end = _common([part[begin:][::-1] for part in parts])
    return [safe_name("_".join(part[begin : len(part) - end])) for part in parts]


def _common(rows: Sequence[Sequence[str]]) -> int:
    """How many items all rows have in common from their beginning on."""
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return sum(1 for _ in shared)

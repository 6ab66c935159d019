"""The list of files that were refused, with the reason for each."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tae.runtime.files import replacing
from tae.runtime.scratch import ScratchList

REJECTED = "rejected.csv"
Rejected = ScratchList[tuple[str, str]]  # (path, reason)


def write_rejected(path: Path, rejected: Iterable[Sequence[str]], header: Sequence[str] = ("path", "reason")) -> None:
    """Write `rejected.csv`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rejected)


def read_rejected(path: Path) -> Iterator[tuple[str, str]]:
    """Read what `write_rejected` wrote."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        yield from ((row["path"], row["reason"]) for row in csv.DictReader(file))

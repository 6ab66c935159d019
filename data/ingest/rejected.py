"""The list of files that were refused, with the reason for each."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from tae.runtime.files import replacing

REJECTED = "rejected.csv"
Rejected = list[tuple[str, str]]  # (path, reason)


def write_rejected(path: Path, rejected: Iterable[Sequence[str]], header: Sequence[str] = ("path", "reason")) -> None:
    """Write `rejected.csv`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rejected)


def read_rejected(path: Path) -> Rejected:
    """Read what `write_rejected` wrote."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [(row["path"], row["reason"]) for row in csv.DictReader(file)]

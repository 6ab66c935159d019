"""Seconds of what `data.prepare` does with all names at once, by the number of files: linear, or big sources never start.

    python -m benchmarks.listing

Every file has the same name in a folder of its own, and a group of its own: the worst case for unique keys and for the
split by groups. The files are empty; what reading and checking them takes is `benchmarks.prepare`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, publish, seconds
from data.ingest.sources import Found, find_videos
from data.ingest.splits import assign_splits


def measure(files: int) -> dict[str, Any]:
    """Seconds of listing with keys, and of the split, for so many files."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(files):
            path = Path(name) / f"{number:07d}" / "video.mp4"
            path.parent.mkdir()
            path.touch()
        found: list[Found] = []
        listing = seconds(lambda: found.append(find_videos(Path(name), "folder")), "cpu")
        split = seconds(lambda: assign_splits(found[0].videos, "group", 0.2, 0.0, 0, None), "cpu")
    return {
        "files": files,
        "list and name (s)": listing,
        "split by groups (s)": split,
        "microseconds a file": (listing + split) / files * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=(1_000, 10_000, 100_000))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [measure(files) for files in arguments.files]
    publish("listing", "cpu", {"files": list(arguments.files)}, rows, arguments.output)


if __name__ == "__main__":
    main()

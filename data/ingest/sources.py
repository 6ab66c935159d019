"""The files of a source folder, and a unique key for each."""

import os
import re
import unicodedata
from pathlib import Path

from data.ingest.splits import UCF101_NAME, Video
from data.shards.format import VIDEO_EXTENSIONS

KEY_LENGTH = 80  # a ustar member's name holds 100 characters


def find_videos(source: Path, dataset: str, output: Path | None = None) -> tuple[list[Video], list[tuple[str, str]]]:
    """Every file below `source`, sorted: candidates by name, and the others with the reason why they are none.

    What lies in `output` is no part of the source.
    """
    candidates: list[Video] = []
    rejected: list[tuple[str, str]] = []
    taken: set[str] = set()
    ours = source / os.path.relpath(output.resolve(), source.resolve()) if output else None
    for path in sorted(path for path in source.rglob("*") if not path.is_dir() and ours not in path.parents):
        relative = path.relative_to(source).as_posix()
        if reason := _why_not(path, dataset):
            rejected.append((relative, reason))
            continue
        key = unique_key(path.stem, taken)
        taken.add(key)
        name = UCF101_NAME.match(path.stem) if dataset == "ucf101" else None
        label = path.parent.name if path.parent != source else (name["label"] if name else "")
        candidates.append(Video(relative, key, label, name["group"] if name else key))
    return candidates, rejected


def _why_not(path: Path, dataset: str) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if not path.is_file():
        return "not a regular file (a broken link?)"
    if path.suffix.lower().lstrip(".") not in VIDEO_EXTENSIONS:
        return f"not a video by its extension ({path.suffix or 'none'})"
    if dataset == "ucf101" and not UCF101_NAME.match(path.stem):
        return "not named v_<Class>_gXX_cYY as the clips of UCF-101 are (use dataset=folder for other videos)"
    return ""


def unique_key(stem: str, taken: set[str]) -> str:
    """A sample's key from a file name: letters, digits, `_` and `-` only, and not in `taken`."""
    ascii_name = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    base = re.sub(r"[^A-Za-z0-9_-]+", "_", ascii_name).strip("_")[:KEY_LENGTH] or "video"
    key, number = base, 1
    while key in taken:
        number += 1
        key = f"{base}-{number}"
    return key

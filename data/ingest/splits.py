"""Who goes to train, val and test: pure functions of the files' names and a seed."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tae.runtime.errors import UserError

UCF101_NAME = re.compile(r"v_(?P<group>(?P<label>[A-Za-z]+)_g\d+)_c\d+$")
OFFICIAL_ADDRESS = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"
OFFICIAL_SPLITS = ("official1", "official2", "official3")
SPLIT_KINDS = ("group", "random", *OFFICIAL_SPLITS, "list", "none", "test")


@dataclass(frozen=True, slots=True)  # there may be millions
class Video:
    """A source file: path below the source folder, key of its sample, class, scene that it was cut from, split by a list.

    more: further fields of its metadata
    cuts: the parts of it that are to be clips; none: all of it is one
    """

    path: str
    key: str
    label: str
    group: str
    split: str = ""
    more: Mapping[str, Any] | None = field(default=None, compare=False)
    cuts: tuple["Cut", ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a file: its seconds (None: from the start, to the end), and what is said of it alone."""

    start: float | None
    end: float | None
    label: str
    more: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{0 if self.start is None else self.start:g} to {'the end' if self.end is None else f'{self.end:g}'} s"


def assign_splits(
    videos: Sequence[Video], split: str, test: float, val: float, seed: int, splits_dir: Path | None
) -> tuple[dict[str, list[Video]], list[tuple[str, str]]]:
    """Split videos into `train`, `test` and, where `val` is above 0, `val`.

    Returns:
        The videos of each split in their given order, and (path, reason) of those that belong to none.

    Raises:
        UserError: an unknown split, shares that are none, or official lists that are missing.
    """
    if split not in SPLIT_KINDS:
        raise UserError(f"split={split} is unknown. Choose one of: {', '.join(SPLIT_KINDS)}.")
    if not (test >= 0 and val >= 0 and test + val < 1):
        raise UserError(f"test={test} and val={val} must be shares of at least 0 that leave something for train.")
    chosen: dict[str, set[Video]] = {name: set() for name in ("train", "test", *(["val"] if val else []))}
    unlisted: list[tuple[str, str]] = []
    take = take_groups if split == "group" else take_any
    rest = list(videos)
    if split in OFFICIAL_SPLITS:
        listed = _official_lists(split, splits_dir)
        chosen["test"] = {video for video in videos if listed.get(Path(video.path).stem) == "test"}
        rest = [video for video in videos if listed.get(Path(video.path).stem) == "train"]
        unlisted = [(v.path, f"not in the lists of {split}") for v in videos if Path(v.path).stem not in listed]
    elif split == "list":
        return _by_list(videos)
    elif split == "test":
        chosen["test"], rest = set(videos), []
    elif split != "none":
        chosen["test"] = take(rest, test, seed)
        rest = [video for video in rest if video not in chosen["test"]]
    if val:
        left = val * len(videos) / max(len(rest), 1)
        chosen["val"] = (take_groups if split in OFFICIAL_SPLITS else take)(rest, min(left, 1.0), seed + 1)
    chosen["train"] = set(rest) - chosen.get("val", set())
    return {name: [video for video in videos if video in members] for name, members in chosen.items()}, unlisted


def _by_list(videos: Sequence[Video]) -> tuple[dict[str, list[Video]], list[tuple[str, str]]]:
    """The splits that a list gives."""
    if not any(video.split for video in videos):
        raise UserError(
            "split=list needs a list as source, with a column that says train, val or test (columns.split)."
        )
    names = ("train", "test", *(["val"] if any(video.split == "val" for video in videos) else []))
    splits = {name: [video for video in videos if video.split == name] for name in names}
    return splits, [(video.path, "the list names no split for it") for video in videos if not video.split]


def take_any(videos: Sequence[Video], share: float, seed: int) -> set[Video]:
    """A share of the videos, each file for itself; at least one if there are two."""
    count = max(round(share * len(videos)), 1 if share and len(videos) > 1 else 0)
    return set(random.Random(seed).sample(list(videos), min(count, len(videos))))


def take_groups(videos: Sequence[Video], share: float, seed: int) -> set[Video]:
    """About a share of the videos in whole groups, so that no scene is on both sides.

    From each class of two groups or more at least one is taken and at least one is left; then further groups, in random
    order, as long as they bring the share closer.
    """
    groups: dict[str, list[Video]] = defaultdict(list)
    classes: dict[str, list[str]] = defaultdict(list)
    for video in videos:
        if video.group not in groups:
            classes[video.label].append(video.group)
        groups[video.group].append(video)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    label_of = {group: label for label, members in classes.items() for group in members}
    left = {label: len(members) for label, members in classes.items()}
    taken: set[str] = set()
    size = 0
    for first in (True, False):  # one of every class, then more
        for group in order:
            label = label_of[group]
            untouched = left[label] == len(classes[label])
            if group in taken or (left[label] == 1 and len(classes[label]) > 1):
                continue
            closer = abs(size + len(groups[group]) - share * len(videos)) < abs(size - share * len(videos))
            if (first and share and untouched and left[label] > 1) or (not first and closer):
                taken.add(group)
                size += len(groups[group])
                left[label] -= 1
    return {video for group in taken for video in groups[group]}


def _official_lists(split: str, splits_dir: Path | None) -> dict[str, str]:
    """File stem -> "train" or "test", from trainlist0X.txt and testlist0X.txt."""
    lines: dict[str, str] = {}
    for name in ("train", "test"):
        file = (splits_dir or Path()) / f"{name}list0{split[-1]}.txt"
        if splits_dir is None or not file.is_file():
            raise UserError(
                f"split={split} needs the official lists, and {file.name} is not in splits_dir={splits_dir}. Download "
                f"{OFFICIAL_ADDRESS}, unpack it and give the folder ucfTrainTestlist as splits_dir."
            )
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            if line.strip():
                lines[Path(line.split()[0]).stem] = name
    return lines

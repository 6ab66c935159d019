"""Who goes to train, val and test: pure functions of the files' names and a seed."""

import math
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from tae.runtime.errors import UserError
from tae.runtime.scratch import sort_on_disk

UCF101_NAME = re.compile(r"v_(?P<group>(?P<label>[A-Za-z]+)_g\d+)_c\d+$")
OFFICIAL_ADDRESS = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"
OFFICIAL_SPLITS = ("official1", "official2", "official3")
SPLIT_KINDS = ("group", "random", *OFFICIAL_SPLITS, "list", "none", "test")
SIDES = {"": 0, "train": 1, "test": 2, "val": 3}  # splits as numbers; the first is none


class Video(NamedTuple):
    """A source file: path below the source folder, key of its sample, class, scene that it was cut from, split by a list.

    more: further fields of its metadata
    cuts: the parts of it that are to be clips; none: all of it is one
    """

    path: str
    key: str
    label: str
    group: str
    split: str = ""
    more: Mapping[str, Any] | None = None
    cuts: tuple["Cut", ...] = ()


class Cut(NamedTuple):
    """A part of a file: its seconds (None: from the start, to the end), and what is said of it alone."""

    start: float | None
    end: float | None
    label: str
    more: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{0 if self.start is None else self.start:g} to {'the end' if self.end is None else f'{self.end:g}'} s"


def assign_splits(
    videos: Sequence[Video], split: str, test: float, val: float, seed: int, splits_dir: Path | None
) -> tuple[dict[str, np.ndarray], Iterator[tuple[str, str]]]:
    """Split videos into `train`, `test` and, where `val` is above 0, `val`.

    Returns:
        The places of each split's videos among all, in their order, and (path, reason) of the videos that belong to none.

    Raises:
        UserError: an unknown split, shares that are none, or official lists that are missing.
    """
    if split not in SPLIT_KINDS:
        raise UserError(f"split={split} is unknown. Choose one of: {', '.join(SPLIT_KINDS)}.")
    if not (test >= 0 and val >= 0 and test + val < 1):
        raise UserError(f"test={test} and val={val} must be shares of at least 0 that leave something for train.")
    names = ["train", "test", *(["val"] if val else [])]
    if split == "list":
        sides, names = _by_list(videos)
    elif split in OFFICIAL_SPLITS:
        listed = _official_lists(split, splits_dir)
        sides = _sides((listed.get(Path(video.path).stem, "") for video in videos), len(videos))
    else:
        sides = np.full(len(videos), SIDES["test" if split == "test" else "train"], np.int8)
    scenes = Scenes(videos) if split == "group" or (val and split in OFFICIAL_SPLITS) else None
    if split in ("group", "random"):
        _move("test", sides, test, seed, scenes)
    if val and split != "list":
        left = val * len(videos) / max(int(np.count_nonzero(sides == SIDES["train"])), 1)
        _move("val", sides, min(left, 1.0), seed + 1, scenes)
    reason = "the list names no split for it" if split == "list" else f"not in the lists of {split}"
    unlisted = ((videos[place].path, reason) for place in np.flatnonzero(sides == SIDES[""]).tolist())
    return {name: np.flatnonzero(sides == SIDES[name]) for name in names}, unlisted


class Scenes:
    """Group and label of each video, as numbers in the order of their names."""

    def __init__(self, videos: Sequence[Video]) -> None:
        self.groups = ranks((video.group for video in videos), len(videos))
        self.labels = ranks((video.label for video in videos), len(videos))


def _move(name: str, sides: np.ndarray, share: float, seed: int, scenes: Scenes | None) -> None:
    """Give a split a share of the videos that are in `train`, by whole scenes where these are given."""
    places = np.flatnonzero(sides == SIDES["train"])
    if scenes is None:
        taken = take_any(len(places), share, seed)
    else:
        taken = take_groups(scenes.groups[places], scenes.labels[places], share, seed)
    sides[places[taken]] = SIDES[name]


def _by_list(videos: Sequence[Video]) -> tuple[np.ndarray, list[str]]:
    """The splits that a list gives, and their names."""
    sides = _sides((video.split for video in videos), len(videos))
    if (sides == SIDES[""]).all():
        raise UserError(
            "split=list needs a list as source, with a column that says train, val or test (columns.split)."
        )
    return sides, ["train", "test", *(["val"] if (sides == SIDES["val"]).any() else [])]


def _sides(names: Iterable[str], count: int) -> np.ndarray:
    return np.fromiter((SIDES[name] for name in names), np.int8, count)


def take_any(count: int, share: float, seed: int) -> np.ndarray:
    """A share of so many videos, each file for itself, as a mask; at least one if there are two."""
    chosen = max(round(share * count), 1 if share and count > 1 else 0)
    return sample(count, min(chosen, count), seed)


def sample(count: int, chosen: int, seed: int) -> np.ndarray:
    """Which numbers below `count` are in `random.Random(seed).sample(range(count), chosen)`, as a mask.

    That is the sample of published splits; it is drawn here with 8 bytes for each number, where Python takes 40.
    """
    rng, taken = random.Random(seed), np.zeros(count, bool)
    mask: Any = taken.data
    few = 21 if chosen <= 5 else 21 + 4 ** math.ceil(math.log(chosen * 3, 4))
    if count <= few:
        pool = array("q", range(count))
        for drawn in range(chosen):
            place = rng.randrange(count - drawn)
            mask[pool[place]] = True
            pool[place] = pool[count - drawn - 1]
        return taken
    for _ in range(chosen):
        while mask[place := rng.randrange(count)]:
            pass
        mask[place] = True
    return taken


def take_groups(groups: np.ndarray, labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """About a share of the videos in whole groups, as a mask, so that no scene is on both sides.

    From each class of two groups or more at least one is taken and at least one is left; then further groups, in random
    order, as long as they bring the share closer.

    Args:
        groups, labels: of each video, as in `Scenes`; the class of a group is that of its first video.
    """
    sizes = np.bincount(groups).astype(np.int32)  # half of the memory, with as many groups as files
    label_of = np.zeros(len(sizes), np.int32)
    label_of[groups[::-1]] = labels[::-1]  # of several values the last one stays
    order = np.flatnonzero(sizes).astype(np.int32)
    members = np.bincount(label_of[order]).astype(np.int32)
    shuffle_array(order, random.Random(seed))
    left, taken, wanted, size = members.copy(), np.zeros(len(sizes), bool), share * len(groups), 0
    arrays: Iterable[Any] = (
        numbers.data for numbers in (label_of, members, left, sizes, taken)
    )  # read one by one, faster
    of, all_of, left_of, count, is_taken = arrays
    for first in (True, False):  # one of every class, then more
        for group in order.data:
            label = of[group]
            if is_taken[group] or (left_of[label] == 1 and all_of[label] > 1):
                continue
            untouched = left_of[label] == all_of[label]
            closer = abs(size + count[group] - wanted) < abs(size - wanted)
            if (first and share and untouched and left_of[label] > 1) or (not first and closer):
                is_taken[group] = True
                size += count[group]
                left_of[label] -= 1
    return taken[groups]


def shuffle_array(numbers: np.ndarray, rng: random.Random) -> None:
    """Shuffle an array as a list of its numbers would be."""
    rng.shuffle(cast("MutableSequence[int]", numbers.data))


def ranks(texts: Iterable[str], count: int) -> np.ndarray:
    """For each of `count` texts its place among all different ones in their order, int32."""
    found = np.empty(count, np.int32)
    ordered = sort_on_disk(enumerate(texts), key=itemgetter(1))
    for rank, (_, members) in enumerate(groupby(ordered, key=itemgetter(1))):
        for place, _ in members:
            found[place] = rank
    return found


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

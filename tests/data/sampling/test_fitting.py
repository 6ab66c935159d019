"""Which bucket a clip goes to, by whole columns of an index."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampling.fitting import FitsAny, FitsBest, FitsIn
from data.sampling.types import Window
from data.shards.columns import Strings
from data.shards.table import Selection, ShardIndex, ShardList, select

# (frames, height, width), as they are written in a config.
SHAPES = {"long": (17, 16, 32), "wide": (9, 16, 32), "tall": (9, 32, 16), "large": (9, 64, 128), "image": (1, 64, 64)}
WINDOWS = tuple(Window(frames, 1, (height, width)) for frames, height, width in SHAPES.values())


def listed(**columns: list[Any]) -> ShardList:
    """One shard whose samples have these columns."""
    count = len(columns["frames"])
    dtypes = {"frames": "uint32", "fps": "float64", "width": "uint32", "height": "uint32"}
    arrays = {name: np.array(values, dtypes[name]) for name, values in columns.items()}
    texts = Strings.of(["s"])
    index = ShardIndex(
        "", texts, np.array([1]), Strings.of([""]), np.array([count]), arrays | {"key": Strings.of("abc")}
    )
    return ShardList(["s"], [index], [0], [0])


def bucket_of(frames: int, height: int, width: int) -> str | None:
    shards = listed(frames=[frames], height=[height], width=[width])
    chosen = [name for place, name in enumerate(SHAPES) if FitsBest(WINDOWS, place).of(shards, 0)[0]]
    assert len(chosen) == FitsAny(WINDOWS).of(shards, 0)[0]
    return chosen[0] if chosen else None


@pytest.mark.parametrize(
    ("frames", "height", "width", "bucket"),
    [
        (40, 30, 60, "long"),  # of the wide ones that with the most frames
        (12, 30, 60, "wide"),  # too short for it; the large one would be scaled up
        (40, 64, 128, "long"),
        (12, 64, 128, "large"),  # of equally long ones that with the most pixels
        (12, 60, 40, "tall"),
        (40, 50, 51, "image"),  # the nearest to a square
        (3, 30, 60, "image"),  # the only one that it fits into
        (40, 8, 16, "long"),  # to be scaled up by two, by eight for the large one
    ],
)
def test_a_clip_goes_where_it_fits_best(frames: int, height: int, width: int, bucket: str) -> None:
    assert bucket_of(frames, height, width) == bucket


@given(frames=st.integers(1, 30), height=st.integers(1, 200), width=st.integers(1, 200))
def test_a_clip_goes_to_one_bucket(frames: int, height: int, width: int) -> None:
    assert bucket_of(frames, height, width) is not None


def test_buckets_of_one_size_need_frames_alone() -> None:
    """An index of version 1 has no more."""
    windows = (Window(9, 1, 16), Window(17, 1, 16))
    rules = [FitsBest(windows, place) for place in range(2)]
    assert [rule.columns for rule in rules] == [(), ()]
    shards = listed(frames=[8, 9, 16, 17, 40])
    assert [rule.of(shards, 0).tolist() for rule in rules] == [
        [False, True, True, False, False],
        [False] * 3 + [True] * 2,
    ]
    filled = [FitsBest(windows, place, filled=True).of(shards, 0).tolist() for place in range(2)]
    assert filled == [[True, True, True, False, False], [False] * 3 + [True] * 2]
    assert FitsBest((*windows, Window(9, 1, 32)), 0).columns == ("width", "height")


def test_files_that_are_too_slow_or_too_short_do_not_fit() -> None:
    window = Window(9, 1, 8, fps=(24.0, 12.0))
    shards = listed(frames=[17, 16, 9, 8, 40, 1], fps=[24.0, 12.0, 24.0, 24.0, 11.0, 0.0])
    assert FitsIn(window).of(shards, 0).tolist() == [True, True, True, False, False, False]
    assert FitsIn(window, filled=True).of(shards, 0).tolist() == [True, True, True, True, False, False]
    assert FitsIn(window).columns == ("fps",)
    found = select(shards, Selection(rules=(FitsIn(window),), bounds={"frames": (9, None)}))
    assert (found.counts.tolist(), found.outside) == ([3], 2)

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.decode import DecodeError
from data.loading.stream import take_window
from data.sampling.types import Window
from data.sampling.windows import (
    central_window,
    random_window,
    span_at_rate,
    starts_at_rate,
    window_at_rate,
    window_span,
)


@pytest.mark.parametrize(
    ("frames_in_file", "num_frames", "stride", "expected"),
    [
        (5, 5, 1, [0, 1, 2, 3, 4]),  # exactly as long
        (8, 4, 1, [2, 3, 4, 5]),
        (9, 4, 1, [2, 3, 4, 5]),  # odd remainder: the longer rest follows
        (9, 3, 4, [0, 4, 8]),  # the span fills the file
        (12, 3, 4, [1, 5, 9]),
        (3, 5, 1, [0, 1, 2, 2, 2]),  # too short: the last frame again
        (4, 3, 2, [0, 2, 3]),
        (1, 3, 7, [0, 0, 0]),  # a picture
        (7, 1, 5, [3]),  # one frame of a video
    ],
)
def test_central_window(frames_in_file: int, num_frames: int, stride: int, expected: list[int]) -> None:
    assert central_window(frames_in_file, num_frames, stride) == expected


def test_a_random_window_starts_everywhere_it_fits_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    windows = [random_window(10, 3, 2, rng) for _ in range(600)]
    starts, counts = np.unique([window[0] for window in windows], return_counts=True)
    assert starts.tolist() == [0, 1, 2, 3, 4, 5]  # the last start whose window ends with frame 9
    assert all(window == [window[0], window[0] + 2, window[0] + 4] for window in windows)
    assert counts.min() > 60  # 100 expected each, standard deviation 9


def test_a_random_window_of_a_short_file_repeats_its_last_frame() -> None:
    assert random_window(2, 4, 1, np.random.default_rng(0)) == [0, 1, 1, 1]


@pytest.mark.parametrize(("num_frames", "stride", "span"), [(1, 9, 1), (2, 3, 4), (32, 1, 32)])
def test_window_span(num_frames: int, stride: int, span: int) -> None:
    assert window_span(num_frames, stride) == span


RATES = [24.0, 25.0, 30.0, 30000 / 1001, 60.0]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_whole_part_of_a_constant_rate_is_a_stride(rate: float, stride: int) -> None:
    """Times rounded to milliseconds, as Matroska has them: the same frames and the same starts."""
    fps = rate / stride
    times = (np.arange(50) / rate).round(3)
    starts = starts_at_rate(times, 8, fps)
    assert starts == 50 - window_span(8, stride) + 1
    assert all(window_at_rate(s, times, 8, fps) == list(range(s, s + 8 * stride, stride)) for s in range(starts))
    assert span_at_rate(8, np.array([rate]), fps) == window_span(8, stride)


def test_frames_are_the_nearest_to_their_times() -> None:
    """Of a file whose rate changes; the mean rate would take others."""
    times = np.array([0, 1, 2, 3, 4, 5, 6, 7, 17, 27, 37, 47], float) / 10 + 3.0
    assert window_at_rate(0, times, 5, 1.0) == [0, 7, 8, 9, 10]  # those at 0, 7, 17, 27, 37 of 0, 10, 20, 30, 40
    assert window_at_rate(2, times, 3, 10.0) == [2, 3, 4]
    assert window_at_rate(7, times, 3, 10.0) == [7, 7, 7]  # nothing new was shown before 17
    assert window_at_rate(10, times, 4, 1.0) == [10, 11, 11, 11]
    for start in range(12):
        wanted = times[start] + np.arange(4) / 2.0
        nearest = np.abs(times[:, None] - wanted).min(0)
        assert np.abs(times[window_at_rate(start, times, 4, 2.0)] - wanted) == pytest.approx(nearest)


def test_a_slower_file_has_no_window() -> None:
    assert span_at_rate(9, np.array([23.9, 0.0, 24.0, 48.0]), 24.0).tolist() == [9, np.inf, 9, 17]
    assert span_at_rate(9, np.array([30000 / 1001]), 30.0).tolist() == [9]  # everybody's 30
    assert Window(9, 1, 8, fps=(24.0, 12.0)).paces(16, 24.0) == [0]  # 17 frames at 12
    assert Window(9, 1, 8, fps=(24.0, 12.0)).paces(20, 15.0) == [1]
    assert Window(9, 1, 8, fps=(24.0, 12.0)).paces(20, 11.0) == []
    assert Window(1, 1, 8, fps=(24.0,)).paces(1, 0.0) == [0]  # an image


def test_strides_are_drawn_of_those_that_fit() -> None:
    window = Window(5, (1, 2, 4), 8)
    assert [window.paces(frames, 24.0) for frames in (17, 16, 9, 8, 5)] == [[0, 1, 2], [0, 1], [0, 1], [0], [0]]
    assert window.paces(3, 24.0) == [0]  # too short for all: the shortest, filled up
    rng = np.random.default_rng(0)
    taken = [take_window(window, 12, 24.0, lambda: None, rng) for _ in range(1200)]
    strides = Counter(indices[1] - indices[0] for indices, _ in taken)
    assert strides.keys() == {1, 2}
    assert 520 < strides[1] < 680  # 600, standard deviation 17
    assert all(fps == 24.0 / (indices[1] - indices[0]) for indices, fps in taken)
    for stride, starts in ((1, 8), (2, 4)):
        counts = Counter(indices[0] for indices, _ in taken if indices[1] - indices[0] == stride)
        assert counts.keys() == set(range(starts))
        assert min(counts.values()) > 600 / starts * 0.55  # 75 or 150 each, standard deviations 8 and 11


def test_windows_at_a_rate_start_everywhere_alike() -> None:
    """By times of which every second one is late; what ends beyond the file is left out."""
    times = np.arange(12) / 24 + np.arange(12) % 2 * 0.01
    rng, window = np.random.default_rng(0), Window(3, 1, 8, fps=(12.0,))
    taken = [take_window(window, 12, 24.0, lambda: times, rng) for _ in range(800)]
    counts = Counter(indices[0] for indices, _ in taken)
    assert counts.keys() == set(range(8))
    assert min(counts.values()) > 60  # 100 each, standard deviation 9
    assert all(indices == [indices[0], indices[0] + 2, indices[0] + 4] and fps == 12.0 for indices, fps in taken)
    assert take_window(window, 12, 24.0, lambda: times, None)[0] == [3, 5, 7]
    assert take_window(replace(window, place="first"), 12, 24.0, lambda: None, None)[0] == [0, 2, 4]


def test_a_file_whose_times_contradict_its_rate_is_a_fault() -> None:
    with pytest.raises(DecodeError, match="states 24 frames a second"):
        take_window(Window(9, 1, 8, fps=(12.0,)), 17, 24.0, lambda: np.arange(17) / 240, None)
    with pytest.raises(DecodeError, match=r"has 10 frames a second, fewer than data\.fps"):
        take_window(Window(9, 1, 8, fps=(12.0,)), 17, 10.0, lambda: None, None)

import numpy as np
import pytest

from data.sampling.windows import central_window, random_window, window_span


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

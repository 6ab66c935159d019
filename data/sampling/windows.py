"""Which frames of a file make a clip: pure integer functions, no decoding."""

from typing import Literal

import numpy as np

RATE_TOLERANCE = 0.01  # of a file that is a little slower than asked: 29.97 frames a second are given for 30
TIE = 1e-6  # seconds: a time in the middle between two frames gets the earlier one, whatever the last digits
ShortClip = Literal["skip", "repeat_last"]
EvalWindow = Literal["central", "first"]


def window_span(num_frames: int, frame_stride: int) -> int:
    """Frames of the file from a window's first to its last frame, both included."""
    return (num_frames - 1) * frame_stride + 1


def window_from(start: int, frames_in_file: int, num_frames: int, frame_stride: int) -> list[int]:
    """`num_frames` indices from `start` on; past the end of the file its last frame is repeated."""
    return [min(start + i * frame_stride, frames_in_file - 1) for i in range(num_frames)]


def central_window(frames_in_file: int, num_frames: int, frame_stride: int) -> list[int]:
    """The window in the middle of the file; with an odd remainder the longer rest follows it."""
    rest = max(frames_in_file - window_span(num_frames, frame_stride), 0)
    return window_from(rest // 2, frames_in_file, num_frames, frame_stride)


def evaluation_window(where: EvalWindow, frames_in_file: int, num_frames: int, frame_stride: int) -> list[int]:
    """The window that is measured of a file: the central one, or the one at its first frame."""
    if where == "first":
        return window_from(0, frames_in_file, num_frames, frame_stride)
    return central_window(frames_in_file, num_frames, frame_stride)


def random_window(frames_in_file: int, num_frames: int, frame_stride: int, rng: np.random.Generator) -> list[int]:
    """A window that starts at any frame from which it fits, each with the same probability."""
    rest = max(frames_in_file - window_span(num_frames, frame_stride), 0)
    return window_from(int(rng.integers(rest + 1)), frames_in_file, num_frames, frame_stride)


def span_at_rate(num_frames: int, rate: np.ndarray, fps: float) -> np.ndarray:
    """Frames that a window at `fps` spans in files of some rates, by their mean rate; infinite where a file is slower."""
    with np.errstate(invalid="ignore"):
        spans = np.rint((num_frames - 1) * rate / fps) + 1
    return np.where(rate >= fps * (1 - RATE_TOLERANCE), spans, np.inf)


def starts_at_rate(times: np.ndarray, num_frames: int, fps: float) -> int:
    """How many frames, from the first on, a window at `fps` can start at: to its end no time is beyond the file's.

    Args:
        times: of display of each frame, ascending seconds.
    """
    half = (times[-1] - times[0]) / max(len(times) - 1, 1) / 2  # a frame: then the last one is still the nearest
    return int(np.searchsorted(times, times[-1] + half + TIE - (num_frames - 1) / fps, side="right"))


def window_at_rate(start: int, times: np.ndarray, num_frames: int, fps: float) -> list[int]:
    """The frames nearest to `num_frames` times at `fps` from a frame on; beyond the end the last one is repeated."""
    wanted = times[start] + np.arange(num_frames) / fps
    between = (times[1:] + times[:-1]) / 2
    return np.searchsorted(between + TIE, wanted).tolist()

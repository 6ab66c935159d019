"""Which frames of a file make a clip: pure integer functions, no decoding."""

from typing import Literal

import numpy as np

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

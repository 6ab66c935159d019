"""Video files as streams: read front to back, write beside it with the same timing, colours and sound.

Reader and writer hold no more than a few frames, whatever the length of the file. `write_video` is for short clips at hand.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.video.reformatter import Colorspace

from tae.runtime.errors import UserError

# The matrices that swscale knows, by their number in a stream (ITU-T H.273, MatrixCoefficients).
MATRICES = {
    1: Colorspace.ITU709,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}
H273 = {Colorspace.ITU709: 1, Colorspace.ITU601: 6, Colorspace.SMPTE240M: 7, Colorspace.BT2020: 9}
HD_HEIGHT = 720  # without a word in the file players take BT.709 from this height on and BT.601 below


@dataclass(frozen=True)
class Frame:
    """One frame as it is displayed.

    rgb: (h, w, 3) uint8
    pts: when it is shown, in units of the file's time base
    """

    rgb: np.ndarray
    pts: int


class VideoReader:
    """The first video stream of a file, from its first to its last frame; rotation of the container applied.

    Raises:
        UserError: the file cannot be opened, holds no video, does not decode, or changes its size on the way.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with plain_errors(path), ExitStack() as stack:
            self._container = stack.enter_context(av.open(str(path), metadata_errors="replace"))
            if not self._container.streams.video:
                raise UserError(f"{path} holds no video stream.")
            self._stream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self._frames = self._container.decode(self._stream)
            self._first = next(self._frames, None)
            if self._first is None:
                raise UserError(f"{path} holds no frame that can be decoded.")
            self._close = stack.pop_all().close
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.time_base: Fraction = self._stream.time_base or 1 / self.rate
        guess = Colorspace.ITU709 if self._first.height >= HD_HEIGHT else Colorspace.ITU601
        self.matrix: Colorspace = MATRICES.get(int(self._first.colorspace), guess)
        self.size: tuple[int, int] = self._rgb(self._first).shape[:2]
        self.aspect: Fraction | None = self._stream.sample_aspect_ratio or None  # of a pixel
        if self.aspect and self._first.rotation % 180:
            self.aspect = 1 / self.aspect

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    @property
    def stated_frames(self) -> int | None:
        """How many frames the header promises. Good for a progress bar, no more."""
        if self._stream.frames:
            return self._stream.frames
        duration = self._container.duration
        return round(duration / av.time_base * self.rate) if duration else None

    def frames(self) -> Iterator[Frame]:
        """Every frame, in the order of display; once only."""
        step = max(round(1 / (self.rate * self.time_base)), 1)
        frame, pts = self._first, None
        with plain_errors(self.path):
            while frame is not None:
                rgb = self._rgb(frame)
                if rgb.shape[:2] != self.size:
                    raise UserError(f"{self.path} changes its size on the way, from {self.size} to {rgb.shape[:2]}.")
                expected = 0 if pts is None else pts + step
                # Some files repeat a time or give none; a written file needs each later than the last.
                pts = expected if frame.pts is None or (pts is not None and frame.pts <= pts) else frame.pts
                yield Frame(rgb, pts)
                frame = next(self._frames, None)

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = frame.to_ndarray(format="rgb24", src_colorspace=self.matrix)
        return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90)) if frame.rotation % 360 else rgb


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn what FFmpeg raises into a user's error that names the file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read as a video: {reason}.") from error

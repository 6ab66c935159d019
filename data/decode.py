"""The frames of a video file at given indices, from memory."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils.dlpack import from_dlpack

FRAMES_AT_ONCE = 8  # 200 MB at 3840x2160
MAX_PIXELS = 8192 * 8192  # of a frame: 200 MB; 8K has half as many
MAX_ASPECT = 32  # long side to short side: scaling the short one up must not make the long one huge


class DecodeError(Exception):
    """The video cannot be decoded; the message is the reason in plain words."""


@contextmanager
def as_path(video: bytes) -> Iterator[str]:
    """Give bytes a path for as long as the context lasts.

    decord ends the process with SIGSEGV on a truncated .avi that it reads through a file object; by path it never
    did. `memfd_create` (Linux) makes a path without touching a disk; elsewhere it is a temporary file.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("clip")
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(video)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(video)
            file.flush()
            yield file.name


class VideoFile:
    """An open video: `len()` frames, `fps`, and frames by index. Use `open_video`.

    Frames come as they are displayed: decord applies the rotation that the container asks for.
    """

    def __init__(self, path: str) -> None:
        import decord  # here, because it loads its own libav: only processes that decode pay for it

        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(path, num_threads=1)  # parallel over clips, not inside one
            self.fps = float(self._reader.get_avg_fps())
            height, width = self._reader.get_batch([]).shape[1:3]  # what the file claims; decodes nothing
        except Exception as error:
            raise DecodeError(f"cannot be opened: {_plain(error)}") from error
        if height * width > MAX_PIXELS or max(height, width) > MAX_ASPECT * min(height, width):
            raise DecodeError(f"claims pictures of {width}x{height} pixels, which is beyond all use")

    def __len__(self) -> int:
        return len(self._reader)

    def frames(self, indices: Sequence[int], seek: bool = True) -> np.ndarray:
        """Decode uint8 RGB (len(indices), h, w, 3); an index may occur twice.

        Args:
            seek: jump to the nearest keyframe. In some files decord then counts from a wrong keyframe, or nothing
                decodes after one; without seeking every frame up to the last one wanted is decoded.

        Raises:
            DecodeError: an index is outside the video or a frame does not decode.
        """
        if max(indices) >= len(self):
            raise DecodeError(f"has {len(self)} frames, frame {max(indices)} was asked for")
        try:
            return _as_array(self._reader.get_batch(list(indices))) if seek else self._frames_in_order(indices)
        except Exception as error:
            raise DecodeError(f"frames {min(indices)} to {max(indices)} do not decode: {_plain(error)}") from error

    def _frames_in_order(self, indices: Sequence[int]) -> np.ndarray:
        wanted = set(indices)
        kept: dict[int, np.ndarray] = {}
        for start in range(0, max(indices) + 1, FRAMES_AT_ONCE):
            chunk = range(start, min(start + FRAMES_AT_ONCE, max(indices) + 1))
            images = _as_array(self._reader.get_batch(list(chunk)))
            kept |= {index: images[i].copy() for i, index in enumerate(chunk) if index in wanted}
        return np.stack([kept[index] for index in indices])


def _as_array(frames: Any) -> np.ndarray:
    """decord's frames as they lie in memory; its own `asnumpy` copies them."""
    return from_dlpack(frames.to_dlpack()).numpy()


@contextmanager
def open_video(video: bytes) -> Iterator[VideoFile]:
    """Open the bytes of a video file; raises DecodeError where decord cannot."""
    with as_path(video) as path:
        yield VideoFile(path)


def read_frames(video: bytes, indices: Sequence[int], seek: bool = True) -> np.ndarray:
    """Decode some frames of a video file held in memory; `seek` as in `VideoFile.frames`.

    Shapes:
        returns: (len(indices), h, w, 3) uint8 RGB, in the order of `indices`

    Raises:
        DecodeError: the bytes are no video, or one of the frames does not decode.
    """
    with open_video(video) as file:
        return file.frames(indices, seek)


def _plain(error: Exception) -> str:
    """What decord's own message says, without its stack trace and source positions."""
    lines = [line.split("Check failed: ")[-1].strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

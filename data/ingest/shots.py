"""Long videos to clips in which random windows are cheap: cut where the picture changes, keyframes every few frames.

A file with few keyframes is decoded from the last of them to the window that is wanted, so that most of the work is
thrown away. And a window across a cut shows two scenes. Both are mended by encoding once more; the cuts are exact to
the frame, which they cannot be without (the copied part of a stream starts at a keyframe).
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import av
import numpy as np

from data.ingest.check import decode_sound
from tae.runtime.errors import UserError

DETECTOR_HEIGHT = 144  # rows that the detector looks at: its scores are means over the image


@dataclass(frozen=True)
class Encoding:
    """How clips are encoded.

    Args:
        shots: cut every video where PySceneDetect's ContentDetector finds a new shot.
        threshold: of the detector; its own default is 27, and a lower one finds more cuts.
        min_frames: no shot is shorter; what is cut faster stays in one shot with its neighbour.
        short_side: pixels, even; a smaller video keeps its size. None keeps every size, made even.
        gop: frames from one keyframe to the next.
        crf: quality of x264, 0 (lossless) to 51.
    """

    shots: bool
    threshold: float
    min_frames: int
    short_side: int | None
    gop: int
    crf: int

    def __post_init__(self) -> None:
        if self.short_side is not None and (self.short_side < 16 or self.short_side % 2):
            raise UserError(f"short_side={self.short_side} must be even and at least 16, or null.")
        if self.gop < 1 or self.min_frames < 1 or not self.threshold > 0 or not 0 <= self.crf <= 51:
            raise UserError(
                f"gop={self.gop} and min_shot={self.min_frames} must be at least 1, shot_threshold={self.threshold} "
                f"above 0 and crf={self.crf} between 0 and 51."
            )
        if self.shots and find_spec("scenedetect") is None:
            raise UserError(
                'shots=true needs PySceneDetect: python -m pip install "temporal-autoencoder[shots]". Without it, '
                "reencode=true alone writes whole videos with frequent keyframes."
            )
        if "libx264" not in av.codecs_available:
            raise UserError("reencode=true needs a build of PyAV with libx264, as its packages on PyPI have.")


def find_shots(video: bytes, encoding: Encoding) -> list[tuple[int, int]]:
    """(start, end) of each shot in frames, `end` excluded; together they are the whole video.

    Raises:
        RefusedError: the video is damaged.
    """
    if not encoding.shots:
        return [(0, len(decode_sound(video).points))]
    watcher = _ShotWatcher(encoding)
    frames = len(decode_sound(video, watcher).points)
    starts = [0, *watcher.cuts]
    return list(zip(starts, [*watcher.cuts, frames], strict=True))


class _ShotWatcher:
    """Shows images to the detector and collects the frames at which it sees a new shot."""

    def __init__(self, encoding: Encoding) -> None:
        from scenedetect import ContentDetector, FrameTimecode  # an extra: only shots=true needs it

        self.cuts: list[int] = []
        self._timecode = FrameTimecode
        self._detector = ContentDetector(encoding.threshold, min_scene_len=encoding.min_frames)
        self._seen = 0

    def __call__(self, image: np.ndarray) -> None:
        step = max(image.shape[0] // DETECTOR_HEIGHT, 1)
        # Frames are counted, whatever their times: a rate of 1 makes the detector's seconds our frames.
        time = self._timecode(self._seen, fps=1.0)
        found = self._detector.process_frame(time, np.ascontiguousarray(image[::step, ::step, ::-1]))
        self.cuts += [cut.frame_num for cut in found]
        self._seen += 1


def encode_shots(video: bytes, shots: list[tuple[int, int]], encoding: Encoding) -> Iterator[bytes]:
    """An .mp4 file (H.264, 4:2:0, no sound) for each shot, in one pass over the video.

    Frames come as they are displayed (rotation applied), one for one, at the average frame rate. Sizes are made even.
    """
    with av.open(io.BytesIO(video), "r") as source:
        stream = source.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "NONE"  # processes already use every core
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = _decoded(source, stream)
        for start, end in shots:
            yield _encode(frames, end - start, rate, encoding)


def _decoded(source: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Every frame that decodes, as `data.check` counts them."""
    for packet in source.demux(stream):
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            continue


def _encode(frames: Iterator[av.VideoFrame], count: int, rate: Fraction, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as sink:
        stream: Any = None
        for number in range(count):
            frame = _upright(next(frames))
            if stream is None:
                width, height = even_size(frame.width, frame.height, encoding.short_side)
                stream = _add_stream(sink, rate, width, height, encoding)
            image = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            image.pts, image.time_base, image.pict_type = number, 1 / rate, 0
            sink.mux(stream.encode(image))
        sink.mux(stream.encode())
    return file.getvalue()


def _add_stream(
    sink: av.container.OutputContainer, rate: Fraction, width: int, height: int, encoding: Encoding
) -> av.VideoStream:
    # One thread, so that the same input gives the same bytes; no B-frames and no keyframe but every gop-th one, so
    # that a window costs the same wherever it starts.
    parameters = f"keyint={encoding.gop}:min-keyint={encoding.gop}:scenecut=0:bframes=0:threads=1"
    stream = sink.add_stream("libx264", rate, options={"crf": str(encoding.crf), "x264-params": parameters})
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    return stream


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    if frame.rotation % 360 == 0:
        return frame
    image: Any = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with the short side at most `short_side`, in even numbers as 4:2:0 needs them."""
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)

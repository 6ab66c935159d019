"""Long videos to clips in which random windows are cheap: cut where the picture changes, keyframes every few frames.

A file with few keyframes is decoded from the last of them to the window that is wanted, so that most of the work is
thrown away. And a window across a cut shows two scenes. Both are solved by re-encoding; the cuts are exact to
the frame, which they cannot be without (the copied part of a stream starts at a keyframe).
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange

from data.decode import as_path
from data.ingest.check import DecodedFile, decode_sound
from tae.runtime.errors import UserError
from tae.video.facts import INTERLACED
from tae.video.reader import Frame, VideoReader
from tae.video.writer import x264_options, yuv420p, yuv_matrix

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
        interlaced: what becomes of interlaced video: refuse, deinterlace or keep.
    """

    shots: bool
    threshold: float
    min_frames: int
    short_side: int | None
    gop: int
    crf: int
    interlaced: str = "refuse"

    def __post_init__(self) -> None:
        if self.short_side is not None and (self.short_side < 16 or self.short_side % 2):
            raise UserError(f"short_side={self.short_side} must be even and at least 16, or null.")
        if self.interlaced not in INTERLACED:
            raise UserError(f"interlaced={self.interlaced} is unknown. Choose one of: {', '.join(INTERLACED)}.")
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


def find_shots(video: bytes, encoding: Encoding) -> tuple[list[tuple[int, int]], DecodedFile]:
    """(start, end) of each shot in frames, `end` excluded, which together are the whole video, and the decoded video.

    Raises:
        RefusedError: the video is damaged.
    """
    watcher = _ShotWatcher(encoding) if encoding.shots else None
    decoded = decode_sound(video, watcher, encoding.interlaced)
    cuts = watcher.cuts if watcher else []
    return list(zip([0, *cuts], [*cuts, len(decoded.points)], strict=True)), decoded


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


def encode_shots(video: bytes, shots: Sequence[tuple[int, int]], encoding: Encoding) -> Iterator[bytes]:
    """An .mp4 file (H.264, 4:2:0, no sound) for each shot; one pass over the video where none begins before the last ends.

    Frames come as they are displayed (turned, with square pixels), one for one, at the average frame rate. Sizes are made
    even. The matrix is the video's own and is stated, the range is limited.
    """
    rest = list(shots)
    with as_path(video) as path:
        while rest:
            with VideoReader(path, encoding.interlaced, threads="NONE") as reader:
                frames, position = reader.frames(), 0
                while rest and rest[0][0] >= position:
                    start, end = rest.pop(0)
                    for _ in range(start - position):
                        next(frames)
                    yield _encode(frames, end - start, reader, encoding)
                    position = end


def _encode(frames: Iterator[Frame], count: int, source: VideoReader, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    height, width = source.size
    width, height = even_size(width, height, encoding.short_side)
    matrix = yuv_matrix(source.facts.colours, source.size[0])
    with av.open(file, "w", format="mp4") as sink:
        stream = _add_stream(sink, source.rate, width, height, encoding)
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, ColorRange.MPEG
        stream.codec_context.color_primaries = source.facts.colours.primaries
        stream.codec_context.color_trc = source.facts.colours.transfer
        for number in range(count):
            image = yuv420p(next(frames).rgb, matrix, width, height)
            image.pts, image.time_base = number, 1 / source.rate
            sink.mux(stream.encode(image))
        sink.mux(stream.encode())
    return file.getvalue()


def _add_stream(sink: av.container.OutputContainer, rate: Fraction, width: int, height: int, encoding: Encoding) -> Any:
    # One thread, so that the same input gives the same bytes; no B-frames and no keyframe but every gop-th one, so
    # that a window costs the same wherever it starts.
    parameters = f"keyint={encoding.gop}:min-keyint={encoding.gop}:scenecut=0:bframes=0:threads=1"
    stream = sink.add_stream("libx264", rate, options=x264_options(parameters, crf=str(encoding.crf)))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    return stream


def even_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height with the short side at most `short_side`, in even numbers as 4:2:0 needs them."""
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    return max(2 * round(width * scale / 2), 2), max(2 * round(height * scale / 2), 2)

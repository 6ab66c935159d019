"""Writing video: frames with the timing, colours and sound of a source, or a short clip."""

from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Interpolation
from torch import Tensor

from tae.runtime.files import replacing
from tae.video.facts import HD_HEIGHT, MATRICES, Colours
from tae.video.reader import Frame, VideoReader
from tae.video.sound import Sound, sound_packets

CRF = "14"  # of H.264: the loss that shows should be the autoencoder's, not the file's


class VideoWriter:
    """An H.264 file as browsers play it (yuv420p, limited range), with the timing, matrix and sound of another.

    Args:
        path: the file.
        source: whose frame times and colour matrix it takes.
        size: height and width of its frames; odd ones are made even by repeating the last row or column, since
            yuv420p has one colour sample for 2x2 pixels.
        sound: what becomes of the source's sound, and the container: `tae.video.sound.plan_sound`; without one there is
            none, in MP4.
    """

    def __init__(self, path: Path, source: VideoReader, size: tuple[int, int], sound: Sound | None = None) -> None:
        sound = sound or Sound()
        self._stack = ExitStack()
        self._matrix = yuv_matrix(source.facts.colours, size[0])
        self._padding = [(0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        options = {"movflags": "+faststart"} if sound.container != "matroska" else {}
        self._container = self._stack.enter_context(av.open(str(path), "w", format=sound.container, options=options))
        self._stream = self._add_video(source, size)
        self._sound = sound_packets(source.path, sound, self._container, source.start)
        self._next_packet = next(self._sound, None)  # before the header is written: it adds the streams

    def _add_video(self, source: VideoReader, size: tuple[int, int]) -> av.VideoStream:
        stream = self._container.add_stream("libx264", rate=source.rate, options=x264_options(crf=CRF))
        stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = source.time_base
        context.colorspace, context.color_range = self._matrix, ColorRange.MPEG
        context.color_primaries = source.facts.colours.primaries
        context.color_trc = source.facts.colours.transfer
        return stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._stack:
            if kind is None:
                self._container.mux(self._stream.encode())
                self._copy_sound(until=None)

    def write(self, frame: Frame) -> None:
        """Append a frame (h, w, 3) and the sound that belongs before it."""
        rgb = np.pad(frame.rgb, self._padding, mode="edge") if any(p[1] for p in self._padding) else frame.rgb
        picture = yuv420p(rgb, self._matrix)
        picture.pts, picture.time_base = frame.pts, self._stream.codec_context.time_base
        self._copy_sound(until=frame.pts * picture.time_base)
        self._container.mux(self._stream.encode(picture))

    def _copy_sound(self, until: Fraction | None) -> None:
        while self._next_packet is not None:
            if until is not None and self._next_packet.dts * self._next_packet.time_base > until:
                return
            self._container.mux(self._next_packet)
            self._next_packet = next(self._sound, None)


def x264_options(parameters: str = "", **options: str) -> dict[str, str]:
    """Options of libx264 by which the same frames give the same bytes each time.

    With AVX-512 its macroblock tree does not at most widths that are no multiple of 128 (measured with build 165: up to 7
    files in 10 runs). With AVX2 it does, and is as fast.

    Args:
        parameters: for `x264-params`, `name=value:name=value`.
        options: others, by name.
    """
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):  # which has AVX2 too
        parameters = f"{parameters}:asm=avx2".removeprefix(":")
    return options | ({"x264-params": parameters} if parameters else {})


def yuv_matrix(colours: Colours, height: int) -> int:
    """The number (H.273) of the matrix for a copy: the source's own, or where it is RGB the one that players take."""
    return colours.number if colours.number in MATRICES else (1 if height >= HD_HEIGHT else 6)


def yuv420p(rgb: np.ndarray, matrix: int, width: int | None = None, height: int | None = None) -> av.VideoFrame:
    """A picture (h, w, 3) for an encoder: limited range, by the matrix with this number (H.273).

    Args:
        width, height: even, to scale it to (bicubic); None keeps its own.
    """
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return picture.reformat(
        width,
        height,
        "yuv420p",
        dst_colorspace=MATRICES[matrix][0],
        dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC if width or height else Interpolation.BILINEAR,
        threads=1,
    )


def write_video(path: Path, frames: Tensor, fps: float) -> None:
    """Write an MP4 that browsers play: H.264, yuv420p, BT.709, index at the front.

    Args:
        path: the file, replaced whole or not at all; its folder is made.
        frames: (t, h, w, 3) uint8 RGB; an odd size is made even by repeating the last row or column.
        fps: frames a second.
    """
    _, height, width, _ = frames.shape
    even = np.pad(frames.cpu().numpy(), [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=x264_options(crf=CRF)
        )
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        stream.codec_context.color_range = 1  # limited, what players assume
        for frame in even:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="itu709")))
        container.mux(stream.encode())

"""Video files by PyAV alone: every frame by a plain sequential decode, and small ones for tests. Imports nothing of ours."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace


def decode_in_order(video: bytes) -> list[np.ndarray]:
    """uint8 (h, w, 3) images in the order of display, turned as the container asks."""
    with av.open(BytesIO(video)) as container:
        return [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(video=0)]


def make_video(
    path: Path, times: list[int], size=(48, 64), time_base=Fraction(1, 600), sound=None, codec="mpeg4", languages=1
):
    """A moving gradient with frames shown at `times`; returns its path."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = time_base
        tracks = [container.add_stream(sound, rate=48000) for _ in range(languages if sound else 0)]
        for track in tracks:
            track.bit_rate = 64_000
        y, x = np.mgrid[: size[0], : size[1]]
        for i, pts in enumerate(times):
            picture = np.stack([x * 3 + 2 * i, y * 3, (x + y) * 2], -1) % 256
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for number, track in enumerate(tracks, start=1):
            for i in range(20):
                samples = (np.sin(np.arange(1024) / 20 * number) * 0.3).astype(np.float32)[None]
                block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                block.sample_rate, block.pts = 48000, i * 1024
                container.mux(track.encode(block))
            container.mux(track.encode())
    return path


def lossless(pictures: Sequence[np.ndarray]) -> bytes:
    """An .mkv file of RGB pictures (h, w, 3) that decodes to exactly these."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def numbered_picture(number: int, height: int = 32, width: int = 64) -> np.ndarray:
    """An RGB picture that shows its number (below 256) in blocks that any codec keeps; see `number_in`."""
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 2 + 3 * number, y * 3 + 2 * number, x + y], -1) % 256 // 3 + 60
    for bit in range(8):
        block = slice(bit * width // 8, (bit + 1) * width // 8)
        picture[: height // 2, block] = 235 if number >> bit & 1 else 20
    return picture.astype(np.uint8)


def number_in(image: np.ndarray) -> int:
    """The number that `numbered_picture` has drawn."""
    height, width = image.shape[:2]
    rows = image[height // 8 : height * 3 // 8]
    blocks = rows.reshape(len(rows), 8, width // 8, -1)[:, :, width // 32 : width * 3 // 32]
    return sum(int(mean > 128) << bit for bit, mean in enumerate(blocks.mean((0, 2, 3))))


def numbered_video(
    path: Path, codec: str, options=None, pix_fmt="yuv420p", b_frames=None, gop=12, frames=60, times=None,
    time_base=Fraction(1, 25), size=(32, 64), setting=None,
) -> Path:  # fmt: skip
    """A file whose frames show their numbers; `setting` is called with the stream before anything is encoded."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base, stream.codec_context.bit_rate = time_base, 1_000_000
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if not options:
            stream.codec_context.gop_size = gop
        if setting:
            setting(stream)
        for number, time in enumerate(times or range(frames)):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def flat(path: Path, height: int, colorspace: int, color_range: int, stated: bool, pix_fmt: str = "yuv420p") -> Path:
    """A green picture, converted by a matrix and range, which the file states or not."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = height, 64, pix_fmt
        if stated:
            stream.codec_context.colorspace = colorspace
            stream.codec_context.color_range = color_range
        picture = av.VideoFrame.from_ndarray(np.full((height, 64, 3), (30, 200, 60), np.uint8), format="rgb24")
        for _ in range(2):
            matrix = Colorspace.ITU709 if colorspace == 1 else Colorspace.ITU601
            container.mux(
                stream.encode(picture.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=color_range))
            )
        container.mux(stream.encode())
    return path

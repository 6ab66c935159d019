"""Video files by PyAV alone: every frame by a plain sequential decode, and small ones for tests. Imports nothing of ours."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np


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

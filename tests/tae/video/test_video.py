"""Videos that pages show, read back by other software."""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from data.drawing import draw_clip
from tae import UserError
from tae.video.reader import VideoReader
from tae.video.writer import write_video


def picture(t=8, h=48, w=64):
    """Smooth moving colours: what yuv420p keeps."""
    y, x = np.mgrid[0:h, 0:w] / 48
    frames = [np.stack([x + k / t, y, 1 - x], -1).clip(0, 1) for k in range(t)]
    return torch.from_numpy((np.stack(frames) * 255).round().astype(np.uint8))


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24", src_colorspace="itu709") for frame in container.decode(stream)]
        return stream, np.stack(frames)


@pytest.mark.parametrize(("height", "width", "fps"), [(48, 64, 29.97), (47, 63, 25.0), (48, 64, 30000 / 1001)])
def test_videos_come_back_as_they_were(tmp_path, height, width, fps):
    frames = picture(8, height, width)
    write_video(tmp_path / "deep" / "clip.mp4", frames, fps)
    stream, decoded = read_video(tmp_path / "deep" / "clip.mp4")
    assert decoded.shape == (8, height + height % 2, width + width % 2, 3)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    error = decoded[:, :height, :width].astype(float) - frames.numpy()
    # Smooth colours lose about a level to yuv420p and crf 14. The wrong matrix (BT.601) shifts greens by 10 and more.
    assert np.abs(error).mean() < 2.5


@pytest.mark.parametrize("width", [86, 160])
def test_the_same_frames_are_the_same_file(tmp_path, width):
    """With AVX-512, libx264 made up to seven files of the same frames in ten runs."""
    frames = torch.from_numpy(draw_clip(np.random.default_rng(0), 60, 64, width))
    for number in range(10):
        write_video(tmp_path / f"{number}.mp4", frames, 25)
    assert len({(tmp_path / f"{number}.mp4").read_bytes() for number in range(10)}) == 1


def test_the_index_is_at_the_front(tmp_path):
    """A browser starts to play before the whole file has come."""
    write_video(tmp_path / "clip.mp4", picture(), 25)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_one_frame_is_a_video_too(tmp_path):
    write_video(tmp_path / "image.mp4", picture(t=1), 25)
    assert len(read_video(tmp_path / "image.mp4")[1]) == 1


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_sees_bt709(tmp_path):
    write_video(tmp_path / "clip.mp4", picture(), 25)
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=color_space", "-of", "csv=p=0", tmp_path / "clip.mp4"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "bt709"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 200, r"truncated: the file ends before its header \(moov\)"),
        (b"not a video", "not a video file that can be opened: Invalid data"),
    ],
)
def test_what_is_no_video_is_called_what_it_is(content: bytes, reason: str, tmp_path: Path) -> None:
    """In preparation alone it was; encoding and reconstruction had one word for all."""
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        VideoReader(tmp_path / "a.mp4")

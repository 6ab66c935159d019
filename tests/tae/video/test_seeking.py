"""Every frame by index is that frame, in every common container and codec."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tae.video.facts import VideoError
from tae.video.seeking import PacketReader
from tests.references.video import number_in, numbered_video

X264 = "keyint=12:min-keyint=12:scenecut=0:bframes=3"
HIDDEN = 20  # frames before the time 0, which an edit list hides
UNEVEN = np.cumsum(np.random.default_rng(0).choice([1, 1, 2, 3, 7], 60)).tolist()

# What readers that count from a keyframe get wrong: B-frames, open groups of pictures, transport streams, edit lists.
HARD = {
    "mpeg2.mkv": ("mpeg2video", {"b_frames": 2}),
    "mpeg2.mov": ("mpeg2video", {"b_frames": 2}),
    "mpeg2.mpg": ("mpeg2video", {"b_frames": 2}),
    "mpeg4.mp4": ("mpeg4", {"b_frames": 2}),
    "mpeg4.mkv": ("mpeg4", {"b_frames": 2}),
    "wmv1.wmv": ("wmv1", {"frames": 150}),
    "wmv2.wmv": ("wmv2", {"frames": 150}),  # decord is right in shorter ones
    "open.mp4": ("libx264", {"options": {"x264-params": X264 + ":open-gop=1"}}),
    "closed.ts": ("libx264", {"options": {"x264-params": X264}}),
    "open.mkv": ("libx265", {"options": {"x265-params": X264 + ":open-gop=1:log-level=none", "preset": "ultrafast"}}),
    "edit.mp4": ("libx264", {"options": {"x264-params": X264}, "times": [i - HIDDEN for i in range(60)]}),
}
EASY = {
    "closed.mp4": ("libx264", {"options": {"x264-params": X264}}),
    "flv1.flv": ("flv", {}),
    "uneven.mp4": ("libx264", {"options": {"x264-params": X264}, "times": UNEVEN, "time_base": Fraction(1, 50)}),
}


def write(folder: Path, name: str) -> Path:
    codec, settings = (HARD | EASY)[name]
    return numbered_video(folder / name, codec, **settings)


@pytest.mark.parametrize("name", [*HARD, *EASY])
def test_every_window_of_every_container_is_right(tmp_path: Path, name: str) -> None:
    reader = PacketReader(str(write(tmp_path, name)))
    hidden = HIDDEN if name == "edit.mp4" else 0
    assert len(reader) == (HARD | EASY)[name][1].get("frames", 60) - hidden
    for start in reversed(range(len(reader) - 3)):  # each one jumps back
        window = [start, start + 1, start + 3]
        assert [number_in(reader.frame(index, seek=True)) - hidden for index in window] == window
    reader.close()


def test_without_times_frames_are_counted(tmp_path: Path) -> None:
    """AVI has none: the times that libav makes up for frames with B-frames go back."""
    path = numbered_video(tmp_path / "b.avi", "libx264", {"x264-params": X264})
    reader = PacketReader(str(path))
    assert [number_in(reader.frame(index, seek=True)) for index in (37, 38, 5, 59, 0)] == [37, 38, 5, 59, 0]
    reader.close()


def test_a_frame_that_does_not_decode_is_not_replaced(tmp_path: Path) -> None:
    video = bytearray(
        numbered_video(tmp_path / "a.mp4", "libx264", {"x264-params": "bframes=0:keyint=12"}).read_bytes()
    )
    reader = PacketReader(str(tmp_path / "a.mp4"))
    packet = reader._packets[30]
    place, size = video.index(bytes(packet)), packet.size
    reader.close()
    video[place + 4 : place + size] = bytes(size - 4)
    (tmp_path / "broken.mp4").write_bytes(video)
    broken = PacketReader(str(tmp_path / "broken.mp4"))
    with pytest.raises(VideoError, match="frame 30 is not found"):
        broken.frame(30, seek=True)
    assert number_in(broken.frame(36, seek=True)) == 36  # the next keyframe
    broken.close()

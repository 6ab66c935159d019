"""What a file shows: the stream, the orientation, the colours, the shape of a pixel, the times and the damage."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from data.decode import read_frames
from tae.video.facts import VideoError
from tae.video.reader import VideoReader
from tests.references.video import flat, number_in, numbered_picture, numbered_video

LOSSLESS = {"codec": "libx264rgb", "options": {"qp": "0"}, "pix_fmt": "rgb24"}


def shown(path: Path, interlaced: str = "refuse") -> tuple[list[np.ndarray], list[int], VideoReader]:
    with VideoReader(path, interlaced) as reader:
        frames = list(reader.frames())
    return [frame.rgb for frame in frames], [frame.pts for frame in frames], reader


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),  # 90 degrees clockwise
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ],
)
def test_the_whole_display_matrix_is_applied(tmp_path: Path, matrix, turn) -> None:
    a, b, c, d = (value << 16 for value in matrix)
    turned = numbered_video(
        tmp_path / "a.mp4",
        frames=2,
        setting=lambda s: s.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30]),
        **LOSSLESS,
    )
    frames, _, _ = shown(turned)
    np.testing.assert_array_equal(frames[1], turn(numbered_picture(1)))
    np.testing.assert_array_equal(read_frames(turned.read_bytes(), [1], reader="pyav")[0], frames[1])


def test_other_angles_are_refused_by_name(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mp4", frames=1, setting=lambda s: s.set_display_rotation(30), **LOSSLESS)
    with pytest.raises(VideoError, match=r"turned by (30|330) degrees; multiples of 90"):
        VideoReader(path)


def test_an_orientation_of_the_first_frame_alone_is_that_of_all(bug_inputs: Path) -> None:
    """An H.264 SEI: ffmpeg shows this file turned by 90 degrees counter-clockwise."""
    frames, _, reader = shown(bug_inputs / "sei90.mp4")
    upright, _, _ = shown(bug_inputs / "base.mp4")
    assert reader.facts.size == (96, 64)
    for frame, other in zip(frames, upright, strict=True):
        np.testing.assert_array_equal(frame, np.rot90(other, 1))


@pytest.mark.parametrize("name", ["thumb_first_nodisp.mkv", "two_default_second.mp4"])
def test_previews_are_passed_over(bug_inputs: Path, name: str) -> None:
    frames, _, _ = shown(bug_inputs / name)
    assert len(frames) == {"thumb_first_nodisp.mkv": 24, "two_default_second.mp4": 40}[name]
    np.testing.assert_array_equal(read_frames((bug_inputs / name).read_bytes(), [5], reader="pyav")[0], frames[5])


@pytest.mark.parametrize(
    ("height", "colorspace", "color_range", "stated"),
    [
        (64, 6, ColorRange.MPEG, False),  # below 720 rows players take BT.601
        (720, 1, ColorRange.MPEG, False),  # and BT.709 from there on
        (64, 1, ColorRange.MPEG, True),
        (720, 6, ColorRange.MPEG, True),
        (64, 6, ColorRange.JPEG, True),
        (720, 1, ColorRange.JPEG, True),
    ],
)
def test_training_and_encoding_see_the_colours_that_players_show(
    tmp_path: Path, height: int, colorspace: int, color_range: int, stated: bool
) -> None:
    path = flat(tmp_path / "a.mkv", height, colorspace, color_range, stated)
    for image in (
        shown(path)[0][1],  # encode, reconstruct, preparation
        read_frames(path.read_bytes(), [1])[0],  # training on shards whose metadata name no reader
        read_frames(path.read_bytes(), [1], reader="pyav")[0],
    ):
        # The wrong matrix is off by 20, the wrong range by 10; decord rounds down in each of its steps.
        np.testing.assert_allclose(image[height // 2, 32].astype(int), (30, 200, 60), atol=3)


def test_colours_that_cannot_be_converted_are_refused_by_name(tmp_path: Path) -> None:
    path = flat(tmp_path / "a.mkv", 64, 8, ColorRange.MPEG, stated=True)
    with pytest.raises(VideoError, match="its colours are YCgCo"):
        VideoReader(path)


@pytest.mark.parametrize(("aspect", "width"), [((64, 45), 91), ((4096, 4083), 64), ((9, 10), 58), ((1, 1), 64)])
def test_pixels_become_square(tmp_path: Path, aspect: tuple[int, int], width: int) -> None:
    def state(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)

    path = numbered_video(tmp_path / "a.mp4", frames=3, setting=state, **LOSSLESS)
    frames, _, reader = shown(path)
    assert reader.size == frames[2].shape[:2] == (32, width)
    assert number_in(frames[2][:, : width // 8 * 8]) == 2 or width != 64
    np.testing.assert_array_equal(read_frames(path.read_bytes(), [2], reader="pyav")[0], frames[2])


def test_interlaced_video_is_refused_deinterlaced_or_kept(tmp_path: Path) -> None:
    """Two moments in every frame: a bar that has moved by 4 pixels in the upper field."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "bff=1", "qp": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(12):
            image = np.full((64, 64, 3), 40, np.uint8)
            for field in (0, 1):
                left = 4 * number + 4 * (1 - field)
                image[field::2, left : left + 12] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())

    def combs(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image[16:48, :, 0].astype(float), axis=0)).mean())

    with pytest.raises(VideoError, match=r"interlaced: .*interlaced=deinterlace"):
        VideoReader(path)
    kept, times, _ = shown(path, "keep")
    smooth, same_times, _ = shown(path, "deinterlace")
    assert len(smooth) == len(kept) == 12
    assert times == same_times
    assert combs(kept[6]) > 10 > 5 * combs(smooth[6])


def test_no_time_is_below_zero(tmp_path: Path) -> None:
    """The clock of a transport stream wraps at 2^33, here after 10 frames."""
    start = 2**33 - 10 * 3600
    path = numbered_video(
        tmp_path / "a.ts", "libx264", {"bf": "3"}, frames=40, time_base=Fraction(1, 90000),
        times=[start + 3600 * i for i in range(40)],
    )  # fmt: skip
    frames, times, _ = shown(path)
    assert [number_in(frame) for frame in frames] == list(range(40))
    assert times == [3600 * i for i in range(40)]


def test_times_that_go_back_are_replaced_by_the_rate(tmp_path: Path) -> None:
    """H.264 with B-frames in AVI."""
    path = numbered_video(tmp_path / "a.avi", "libx264", {"bf": "3"}, frames=40)
    frames, times, reader = shown(path)
    assert [number_in(frame) for frame in frames] == list(range(40))
    assert [time * reader.time_base for time in times] == [Fraction(i, 25) for i in range(40)]


def test_what_an_edit_list_cuts_off_is_not_missing(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mp4", "libx264", {"x264-params": "keyint=12:bframes=0"})
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12  # behind version, flags and number of entries: the duration
    (duration,) = struct.unpack_from(">I", content, place)
    struct.pack_into(">I", content, place, duration // 2)
    path.write_bytes(content)
    frames, _, reader = shown(path)
    assert [number_in(frame) for frame in frames] == list(range(30))
    assert reader.damage == ""


@pytest.mark.parametrize(("broken", "damaged"), [([30], False), (list(range(20, 30)), True)])
def test_one_rule_for_damage(tmp_path: Path, broken: list[int], damaged: bool) -> None:
    path = numbered_video(tmp_path / "a.mp4", "libx264", {"x264-params": "keyint=1:bframes=0"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    for number in broken:
        place = content.index(packets[number])
        content[place + 4 : place + len(packets[number])] = bytes(len(packets[number]) - 4)
    path.write_bytes(content)
    frames, _, reader = shown(path)
    assert len(frames) == 60 - len(broken)
    assert bool(reader.damage) == damaged
    assert not damaged or "50 of 60 frames decode" in reader.damage

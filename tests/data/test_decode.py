import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data.decode import DecodeError, choose_reader, open_video, read_frames
from data.drawing import draw_clip, encode_mp4
from data.loading.stream import take_window
from data.sampling.types import Window
from tests.references.video import decode_in_order, lossless


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_mp4(draw_clip(np.random.default_rng(1), 40, 32, 42))


@pytest.mark.parametrize("indices", [[0], [39], list(range(12, 28)), [3, 3, 17, 5]])
@pytest.mark.parametrize("seek", [True, False])
def test_frames_by_index_are_those_of_a_sequential_decode(video: bytes, indices: list[int], seek: bool) -> None:
    expected = np.stack(decode_in_order(video))[indices]
    frames = read_frames(video, indices, seek)
    assert frames.dtype == np.uint8
    # Two libav builds round the colour conversion differently by 1 of 255 at most; a neighbouring frame differs by 20.
    np.testing.assert_allclose(frames.astype(int), expected.astype(int), atol=2)


def test_frames_stay_what_they_are_when_the_file_is_closed(video: bytes) -> None:
    with open_video(video) as file:
        images = [image for _, image in file.each_frame(range(40))]
    del file
    others = [read_frames(video, [39, 0, 20]) for _ in range(5)]  # which might be given the same memory
    np.testing.assert_array_equal(np.stack(images), read_frames(video, range(40)))
    assert all(np.array_equal(other[1], images[0]) for other in others)


def test_a_jump_lands_where_it_should(shared_clips: Path) -> None:
    """In this file decord's `skip_frames` does not."""
    video = (shared_clips / "hd" / "mixkit_restaurant_720p25.mp4").read_bytes()
    for indices in ([107, 108], [107, 110, 151]):
        np.testing.assert_array_equal(read_frames(video, indices), read_frames(video, indices, seek=False))


@pytest.mark.parametrize("widths", [range(8, 64, 2), range(64, 192, 2)])
def test_rows_that_libav_pads_give_the_same_picture(widths: range) -> None:
    """How wide a picture must be for decord to mistake its padding for channels depends on the processor."""
    rng = np.random.default_rng(0)
    for width in widths:
        picture = rng.integers(0, 256, (16, width, 3), np.uint8)
        frames = read_frames(lossless([picture]), [0])
        np.testing.assert_array_equal(frames[0], picture, err_msg=f"{width} pixels wide")


@pytest.mark.parametrize("broken", [b"", b"not a video at all", b"\x00" * 5000])
def test_what_is_no_video_is_a_decode_error(broken: bytes) -> None:
    with pytest.raises(DecodeError, match="cannot be opened"):
        read_frames(broken, [0])


def test_truncated_files_are_decode_errors_or_frames_but_never_a_crash(video: bytes, shared_clips: Path) -> None:
    """decord given a file object of a truncated .avi ends the process; through a path it must not."""
    avi = next((shared_clips / "ucf101").rglob("*.avi")).read_bytes()
    for whole in (video, avi):
        for share in (0.1, 0.5, 0.9):
            try:
                frames = read_frames(whole[: int(share * len(whole))], [0, 20])
            except DecodeError:
                continue
            assert frames.shape[0] == 2


def test_an_index_outside_the_file_names_both_numbers(video: bytes) -> None:
    with pytest.raises(DecodeError, match="has 40 frames, frame 40 was asked for"):
        read_frames(video, [40])


def test_rotation_is_applied(shared_clips: Path) -> None:
    video = (shared_clips / "awkward" / "rotated_270_640x360.mp4").read_bytes()
    frames = read_frames(video, [5])
    assert frames.shape == (1, 640, 360, 3)
    np.testing.assert_allclose(frames[0].astype(int), decode_in_order(video)[5].astype(int), atol=2)


@pytest.mark.parametrize(
    ("decoder", "recorded", "expected"),
    [
        ("auto", "pyav", "pyav"),
        ("auto", "", ""),  # a shard without a record: `open_video` chooses
        ("pyav", "decord", "pyav"),  # right for every file
        ("decord", "pyav", "pyav"),  # another one is never put in the place of what was found right
        ("torchcodec", "decord", "decord"),
        ("decord", "", "decord"),
    ],
)
def test_a_reader_that_was_found_right_is_kept(decoder: str, recorded: str, expected: str) -> None:
    assert choose_reader(decoder, recorded) == expected


def test_a_reader_that_nobody_knows_is_an_error_of_the_clip() -> None:
    with pytest.raises(DecodeError, match="unknown reader ffms2"):
        choose_reader("auto", "ffms2")


def test_without_a_record_high_pictures_are_read_by_pyav(shared_clips: Path) -> None:
    """decord takes BT.601 where nothing is stated; players take BT.709 from 720 rows on."""
    video = (shared_clips / "awkward" / "short_10f_720p.mp4").read_bytes()
    by_pyav, by_decord = (read_frames(video, [3], reader=reader).astype(int) for reader in ("pyav", "decord"))
    np.testing.assert_array_equal(read_frames(video, [3]), by_pyav)
    assert np.abs(by_pyav - by_decord).max() > 4
    small = (shared_clips / "awkward" / "exact_31f_320x240.avi").read_bytes()
    np.testing.assert_array_equal(*(read_frames(small, [3], reader=reader) for reader in ("", "decord")))


VARYING = [0, 40, 80, 120, 400, 440, 900, 940, 980, 1020]  # milliseconds


@pytest.fixture(scope="module")
def varying() -> bytes:
    """Ten frames, each of another grey, of a camera that loses some."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "2", "g": "4", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(VARYING):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 + 20 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_frames_at_a_rate_are_those_that_are_shown_at_their_times(reader: str, varying: bytes) -> None:
    """Not every n-th one, which the mean rate (about ten a second) would take."""
    with open_video(varying, reader) as video:
        times = video.times()
        assert times is not None
        assert (times - times[0]) * 1000 == pytest.approx(VARYING, abs=0.01)
        indices, fps = take_window(Window(5, 1, 32, fps=(5.0,), place="first"), 10, video.fps, video.times, None)
        assert (indices, fps) == ([0, 3, 4, 5, 6], 5.0)  # at 0, 200, 400, 600 and 800
        shown = [image.mean() for image in video.frames(indices)]
    assert shown == pytest.approx([10 + 20 * number for number in indices], abs=3)  # of YUV's rounding

"""What preparation records of a file is what gives its frames: which reader, and whether it may jump."""

from pathlib import Path

import pytest

from data.decode import read_frames
from data.ingest.check import Facts, check_video
from tests.references.video import number_in, numbered_video
from tests.tae.video.test_seeking import EASY, HARD, HIDDEN, write


def assert_every_window_is_right(video: bytes, facts: Facts, hidden: int = 0, stride: int = 1) -> None:
    for start in range(facts.num_frames - 3 * stride):
        window = list(range(start, start + 4 * stride, stride))
        frames = read_frames(video, window, facts.seekable, facts.reader)
        assert [number_in(frame) - hidden for frame in frames] == window


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("name", HARD)
def test_where_a_reader_counts_wrong_another_one_is_recorded(tmp_path: Path, name: str, decoder: str) -> None:
    video = write(tmp_path, name).read_bytes()
    facts = check_video(video, decoder=decoder)
    assert isinstance(facts, Facts), facts
    assert (facts.reader, facts.seekable) == ("pyav", True)
    assert_every_window_is_right(video, facts, hidden=HIDDEN if name == "edit.mp4" else 0)


@pytest.mark.parametrize("name", EASY)
def test_no_false_alarm(tmp_path: Path, name: str) -> None:
    video = write(tmp_path, name).read_bytes()
    facts = check_video(video, decoder="decord")
    assert isinstance(facts, Facts), facts
    assert (facts.reader, facts.seekable) == ("decord", True)
    assert_every_window_is_right(video, facts)
    assert_every_window_is_right(video, facts, stride=3)


def test_keyframes_that_cannot_be_started_at_are_not_jumped_to(tmp_path: Path) -> None:
    """Intra refresh: the picture is whole again only some frames after the place that the file calls a keyframe."""
    path = numbered_video(tmp_path / "a.mp4", "libx264", {"x264-params": "keyint=24:intra-refresh=1:bframes=0"})
    facts = check_video(path.read_bytes())
    assert isinstance(facts, Facts), facts
    assert (facts.reader, facts.seekable) == ("pyav", False)
    assert_every_window_is_right(path.read_bytes(), facts)


@pytest.mark.parametrize(("b_frames", "expected"), [(0, ("decord", True)), (2, ("pyav", False))])
def test_in_avi_decord_is_taken_where_it_is_right(tmp_path: Path, b_frames: int, expected: tuple[str, bool]) -> None:
    path = numbered_video(tmp_path / "a.avi", "mpeg4", b_frames=b_frames)
    facts = check_video(path.read_bytes())
    assert isinstance(facts, Facts), facts
    assert (facts.reader, facts.seekable) == expected
    assert_every_window_is_right(path.read_bytes(), facts)

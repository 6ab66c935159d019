import argparse
from pathlib import Path

import pytest

from benchmarks.decoders import is_right, measure, thumbnails, windows_of
from tests.references.video import numbered_picture, numbered_video


@pytest.fixture
def transport_stream(tmp_path: Path) -> tuple[Path, list[range]]:
    path = numbered_video(tmp_path / "a.ts", "libx264", {"x264-params": "keyint=12:min-keyint=12:bframes=2"})
    return path, windows_of(path, argparse.Namespace(num_frames=8, windows=5))


def test_a_reader_that_counts_wrong_is_seen(transport_stream: tuple[Path, list[range]]) -> None:
    path, windows = transport_stream
    assert windows == windows_of(path, argparse.Namespace(num_frames=8, windows=5))
    assert measure("pyav", [transport_stream])["wrong windows"] == 0
    found = measure("decord", [transport_stream])
    assert found["wrong windows"] + found["failed"] == 5


def test_a_neighbouring_frame_is_wrong(transport_stream: tuple[Path, list[range]]) -> None:
    path, _ = transport_stream
    expected = thumbnails(path)
    assert is_right([numbered_picture(5)], range(5, 6), expected)
    assert not is_right([numbered_picture(6)], range(5, 6), expected)

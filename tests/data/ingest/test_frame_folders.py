"""Folders of numbered pictures become videos of their own bytes, with their own rate, or say why not."""

import json
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.decode import read_frames
from data.drawing import draw_clip
from data.ingest.check import Facts, RefusedError, check_video
from data.ingest.frame_folders import numbered_pictures, pack_frames, rate_of
from data.ingest.sources import find_videos
from tests.data.ingest.test_prepare import run

FRAMES = draw_clip(np.random.default_rng(0), 12, 48, 64)


def save(
    folder: Path, pattern: str = "{:05d}.jpg", first: int = 0, frames: np.ndarray = FRAMES, **options: int
) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / pattern.format(number), **options)
    return folder


def test_jpeg_and_png_keep_their_bytes_and_other_pictures_their_pixels(tmp_path: Path) -> None:
    for pattern, options, codec in (
        ("{:05d}.jpg", {"quality": 95}, "mjpeg"),
        ("img_{:05d}.png", {}, "png"),
        ("{:d}.webp", {"lossless": True}, "png"),
    ):
        folder = save(tmp_path / pattern, pattern, 1, **options)
        content = pack_frames(folder, 29.97)
        facts = check_video(content)
        assert isinstance(facts, Facts), facts
        assert (facts.num_frames, facts.width, facts.height, facts.codec, facts.reader) == (12, 64, 48, codec, "pyav")
        assert facts.fps == pytest.approx(29.97, abs=1e-3)
        assert pack_frames(folder, 29.97) == content
        found = read_frames(content, range(12), reader=facts.reader)
        pictures = numbered_pictures(folder)
        assert [int(path.stem.rpartition("_")[2]) for path in pictures] == list(range(1, 13))
        if codec == "png":
            np.testing.assert_array_equal(found, FRAMES)
        else:
            shown = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in pictures]).astype(int)
            # libav and Pillow scale the halved colours of a JPEG up in different ways; a neighbouring frame is off by 10.
            assert np.abs(found - shown).mean() < 3
        if not pattern.endswith("webp"):
            assert all(path.read_bytes() in content for path in pictures)


def test_pictures_that_lie_otherwise_are_turned_without_loss(tmp_path: Path) -> None:
    """A JPEG inside a video has no EXIF orientation, so that its pixels must be turned."""
    folder = tmp_path / "turned"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, frame in enumerate(FRAMES[:2]):
        Image.fromarray(frame).save(folder / f"{number}.jpg", exif=exif)
    found = read_frames(pack_frames(folder, 24), [0, 1], reader="pyav")
    expected = [np.rot90(np.asarray(Image.open(folder / f"{number}.jpg").convert("RGB")), -1) for number in (0, 1)]
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path) -> None:
    gap = save(tmp_path / "gap")
    (gap / "00004.jpg").unlink()
    sizes = save(tmp_path / "sizes", frames=FRAMES[:2])
    Image.fromarray(FRAMES[0, :40]).save(sizes / "00002.jpg")
    broken = save(tmp_path / "broken")
    (broken / "00003.jpg").write_bytes(b"")
    double = save(tmp_path / "double")
    (double / "3.jpg").write_bytes(b"x")
    for folder, reason in (
        (gap, "picture 4 is missing between 0 and 11"),
        (sizes, r"several sizes \(64x48, 64x40\)"),
        (broken, r"00003.jpg: not a JPEG"),
        (double, "two of its pictures have the number 3"),
        (tmp_path / "gone", "cannot be read: No such file"),
    ):
        with pytest.raises(RefusedError, match=reason):
            pack_frames(folder, 24)
    for text, reason in (
        ("[Sequence]\nframeRate=0\n", "impossible frame rate"),
        ("[Sequence]\nframeRate=nan\n", "states no frameRate"),
        ("[Sequence]\n", "states no frameRate"),
        ("nonsense", "states no frameRate"),
    ):
        (tmp_path / "seqinfo.ini").write_text(text)
        with pytest.raises(RefusedError, match=reason):
            rate_of(gap, 24)
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nframeRate=30\n")
    assert rate_of(gap, 24) == 30
    assert rate_of(tmp_path / "gap" / "below", 24) == Fraction(24)


def test_folders_are_found_named_and_prepared(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    save(source / "MOT-01" / "img1", "{:06d}.jpg", 1)
    (source / "MOT-01" / "seqinfo.ini").write_text("[Sequence]\nframeRate=30\n")
    save(source / "class_a" / "video 1", "img_{:05d}.jpg")
    flow = save(source / "class_a" / "flow", "flow_x_{:05d}.jpg")
    save(flow / "below", "x.png", frames=FRAMES[:1])
    Image.fromarray(FRAMES[0]).save(flow / "flow_y_00000.jpg")
    found = find_videos(source, "frames")
    assert [(video.path, video.key, video.label) for video in found.videos] == [
        ("MOT-01/img1", "MOT-01", ""),
        ("class_a/video 1", "video_1", "class_a"),
    ]
    outcome = run(source, tmp_path / "out", dataset="frames", split="none")
    assert outcome.accepted["train"] == 2
    assert dict(outcome.rejected) == {
        "MOT-01/seqinfo.ini": "read for the rate of its pictures",
        "class_a/flow": "holds several series of pictures (flow_x_*.jpg, flow_y_*.jpg)",
        "class_a/flow/below/x.png": "not a numbered picture by its name",
    }
    (shard,) = (tmp_path / "out" / "train").glob("*.tar")
    with tarfile.open(shard) as tar:
        assert sorted(tar.getnames()) == ["MOT-01.json", "MOT-01.mov", "video_1.json", "video_1.mov"]
        facts = json.loads(tar.extractfile("MOT-01.json").read())  # type: ignore[union-attr]
    assert (facts["fps"], facts["source"], facts["num_frames"]) == (30.0, "MOT-01/img1", 12)

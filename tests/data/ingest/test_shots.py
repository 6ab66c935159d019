"""Cuts are found to the frame, and a re-encoded clip shows the same frames with a keyframe every few of them."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from data.decode import read_frames
from data.drawing import draw_clip, encode_mp4
from data.ingest import shots
from data.ingest.check import RefusedError, check_video
from data.ingest.clips import Ways, make_clips, read_source
from data.ingest.pipeline import prepare
from data.ingest.shots import Encoding, encode_shots, even_size, find_shots
from data.ingest.splits import Video
from data.processes.pool import Engine
from data.shards.format import MAX_VIDEO_BYTES
from tae.runtime.errors import UserError
from tests.references.video import decode_in_order, flat

SHOTS = Encoding(shots=True, threshold=27.0, min_frames=8, short_side=None, gop=8, crf=10)


def film(*lengths: int) -> bytes:
    """Shots of these lengths, of very different colours."""
    rng, colours = np.random.default_rng(0), [(200, 40, 40), (30, 60, 220), (220, 220, 30), (20, 160, 60)]
    parts = [
        np.clip(draw_clip(rng, length, 64, 128) * 0.2 + np.array(colour) * 0.8, 0, 255).astype(np.uint8)
        for length, colour in zip(lengths, colours, strict=False)
    ]
    return encode_mp4(np.concatenate(parts))


def test_cuts_are_exact_and_clips_are_the_same_frames() -> None:
    video = film(24, 17, 30)
    shots, _ = find_shots(video, SHOTS)
    assert shots == [(0, 24), (24, 41), (41, 71)]
    frames = decode_in_order(video)
    for (start, end), clip in zip(shots, encode_shots(video, shots, SHOTS), strict=True):
        found = decode_in_order(clip)
        assert len(found) == end - start
        errors = np.abs(np.stack(found).astype(int) - np.stack(frames[start:end]))
        assert errors.mean() < 3  # of 255: a lossy codec at high quality; a neighbouring shot is off by more than 50
        with av.open(io.BytesIO(clip)) as file:
            keys = [number for number, frame in enumerate(file.decode(video=0)) if frame.key_frame]
        assert keys == list(range(0, end - start, 8))
        assert not isinstance(check_video(clip), str)


def test_a_shot_is_never_shorter_than_asked_and_one_file_is_one_shot_without_cuts() -> None:
    video = film(24, 4, 30)
    assert all(end - start >= 8 for start, end in find_shots(video, SHOTS)[0])
    whole = Encoding(shots=False, threshold=27.0, min_frames=8, short_side=32, gop=8, crf=18)
    assert find_shots(video, whole)[0] == [(0, 58)]
    (clip,) = encode_shots(video, [(0, 58)], whole)
    assert {frame.shape for frame in decode_in_order(clip)} == {(32, 64, 3)}
    with pytest.raises(RefusedError):
        find_shots(b"no video", SHOTS)


@pytest.mark.parametrize(("height", "colorspace", "color_range"), [(64, 1, 1), (64, 6, 2), (720, 6, 1)])
def test_encoding_again_keeps_colours_and_says_which(
    tmp_path: Path, height: int, colorspace: int, color_range: int
) -> None:
    video = flat(tmp_path / "a.mkv", height, colorspace, color_range, stated=True).read_bytes()
    whole = Encoding(shots=False, threshold=27.0, min_frames=8, short_side=32, gop=8, crf=18)
    (clip,) = encode_shots(video, [(0, 2)], whole)
    with av.open(io.BytesIO(clip)) as file:
        context = file.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (colorspace, 1)
    for image in (read_frames(clip, [1], reader="pyav")[0], read_frames(clip, [1], reader="decord")[0]):
        # Two conversions, each rounding down, and H.264; the wrong matrix is off by 20, the wrong range by 10.
        np.testing.assert_allclose(image[16, image.shape[1] // 2].astype(int), (30, 200, 60), atol=6)


def test_a_copy_of_other_colours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shots, "yuv_matrix", lambda colours, height: 9)
    monkeypatch.setattr(shots, "ColorRange", type("", (), {"MPEG": 2}))  # the tag is wrong, as if forgotten
    path = flat(tmp_path / "a.mkv", 64, 1, 1, stated=True)
    encoding = Encoding(shots=False, threshold=27.0, min_frames=8, short_side=None, gop=8, crf=18)
    with pytest.raises(RefusedError, match="changes its mean colour"):
        list(make_clips(Video("a.mkv", "a", "", "a"), path.read_bytes(), Ways(encoding)))


def test_files_larger_than_readers_take_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "a.mp4").open("wb") as file:
        file.truncate(MAX_VIDEO_BYTES + 1)  # a hole: no disk is filled
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read into memory"))
    with pytest.raises(RefusedError, match=r"4.0 GiB; readers of shards take"):
        read_source(tmp_path / "a.mp4", Ways())


def test_sizes_are_even_and_never_larger() -> None:
    assert even_size(1920, 1080, 256) == (456, 256)
    assert even_size(427, 241, None) == (428, 240)
    assert even_size(240, 320, 256) == (240, 320)
    with pytest.raises(UserError, match="short_side=255"):
        Encoding(True, 27.0, 8, 255, 8, 18)


def test_shots_of_a_film_stay_on_one_side_and_say_where_they_are_from(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for number, lengths in enumerate([(24, 17), (20, 20, 20), (16,)]):
        (tmp_path / "films" / f"film{number}.mp4").write_bytes(film(*lengths))
    prepare(
        "mixkit", tmp_path / "films", tmp_path / "out", split=None, splits_dir=None, test=0.3, val=0.0, seed=0,
        timeout=60, shard_mb=1, encoding=SHOTS, engine=Engine(workers=1),
    )  # fmt: skip
    samples = {}
    for shard in (tmp_path / "out").glob("*/shard-*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    samples[member.name[:-5]] = shard.parent.name, json.load(tar.extractfile(member))  # type: ignore[arg-type]
    assert len(samples) == 6
    assert all(len({side for side, sample in samples.values() if sample["group"] == f"film{n}"}) == 1 for n in range(3))
    _, sample = samples["film1_shot001"]
    assert (sample["source"], sample["shot"], sample["num_frames"]) == ("film1.mp4", [20, 40], 20)
    assert sample["source_sha256"] != sample["sha256"]


def test_without_the_extra_only_shots_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever prepares videos as they are needs neither OpenCV nor PySceneDetect."""
    monkeypatch.setattr(shots, "find_spec", lambda name: None)
    settings: dict[str, Any] = {"threshold": 27.0, "min_frames": 32, "short_side": None, "gop": 8, "crf": 18}
    with pytest.raises(UserError, match=r"shots=true needs PySceneDetect.*\[shots\]"):
        Encoding(shots=True, **settings)
    Encoding(shots=False, **settings)
    code = "import sys; sys.modules['scenedetect'] = None; import data.prepare, data.ingest.shots"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])

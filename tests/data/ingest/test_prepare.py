"""Every source file ends in a shard or in rejected.csv, with the true reason."""

import csv
import hashlib
import json
import random
import re
import tarfile
import tracemalloc
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.decode import read_frames
from data.drawing import draw_clip, encode_mp4
from data.ingest.check import Facts, check_video
from data.ingest.pipeline import prepare
from data.ingest.plan import make_plan
from data.ingest.sources import find_videos
from data.ingest.splits import Video, assign_splits, sample, take_groups
from data.processes.pool import Engine
from data.shards.keys import UniqueKeys
from tae.runtime.errors import UserError
from tests.fakes.warm import run_warm
from tests.references.video import decode_in_order

# What an expert would say about the unusual files; those not named here are sound and must be accepted.
REFUSED = {
    "audio_only.mp4": "no video stream",
    "bitflips.avi": "damaged: 73 of 159",
    "corrupted_real_720p.mp4": "damaged",
    "empty.mp4": "empty file",
    "interlaced_mpeg2_720x576_sar.ts": "interlaced: .*deinterlace",
    "jpeg_named.avi": "single picture",
    "lfs_pointer.mp4": "git-lfs pointer",
    "resolution_change.ts": "size changes .*640x360, 320x240",
    "text.mp4": "not a video file",
    "truncated_half.avi": "81 of 160 frames",
    "truncated_moov_first.mp4": "179 of 289 frames",
    "truncated_no_moov.mp4": "truncated: .*header",
}
IN_ORDER = {"odd_427x241_mpeg4.avi"}  # AVI has no times to find frames by, and decord does not make its pixels square


def run(source: Path, output: Path, **overrides: Any) -> Any:
    options: dict[str, Any] = {"dataset": "folder", "split": None, "splits_dir": None, "test": 0.2, "val": 0.0}
    options |= {"seed": 0, "timeout": 60.0, "shard_mb": 1, "encoding": None, "engine": Engine(workers=1)}
    return prepare(source=source, output=output, **(options | overrides))


def contents(output: Path) -> dict[str, bytes]:
    """Every file of an output, but for the memory of how it was made."""
    files = (path for path in output.rglob("*") if path.is_file() and ".prepare" not in path.parts)
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six small videos in two folders, a copy of one, and files that are none."""
    folder = tmp_path / "videos"
    for number in range(6):
        path = folder / "ab"[number % 2] / f"Clip {number} é.MP4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_mp4(draw_clip(np.random.default_rng(number), 12, 32, 44)))
    (folder / "b" / "z_copy.mp4").write_bytes((folder / "a" / "Clip 0 é.MP4").read_bytes())
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.mp4").write_bytes(b"x")
    (folder / "text.mp4").write_text("no video")
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    (folder / "loop").symlink_to(folder)
    return folder


def test_every_file_is_in_a_shard_or_listed(source: Path, tmp_path: Path) -> None:
    outcome = run(source, tmp_path / "out", val=0.2)
    assert outcome.accepted == {
        "train": 4,
        "test": 0,
        "val": 2,
    }  # shares of all videos by name: both of test are refused
    with (tmp_path / "out" / "rejected.csv").open() as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons["b/z_copy.mp4"] == "same content as a/Clip 0 é.MP4"
    assert reasons["notes.txt"] == "not a video by its extension (.txt)"
    assert reasons[".hidden.mp4"] == "hidden file"
    assert "broken link" in reasons["link.mp4"]
    assert reasons["text.mp4"].startswith("not a video file")
    in_shards = set()
    for index_file in (tmp_path / "out").glob("*/index.json"):
        index = json.loads(index_file.read_text())
        assert index["recipe"]["seed"] == 0
        for entry in index["shards"]:
            content = (index_file.parent / entry["name"]).read_bytes()
            assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
            with tarfile.open(index_file.parent / entry["name"]) as tar:
                for key, frames in entry["frames"].items():
                    video, text = tar.extractfile(f"{key}.mp4"), tar.extractfile(f"{key}.json")
                    assert video is not None
                    assert text is not None
                    facts = json.loads(text.read())
                    assert (facts["num_frames"], facts["width"], facts["height"]) == (frames, 44, 32) == (12, 44, 32)
                    assert video.read() == (source / facts["source"]).read_bytes()
                    assert key == f"Clip_{facts['source'].split()[1]}_e"
                    assert facts["label"] == facts["source"][0]
                    in_shards.add(facts["source"])
    everything = {path.relative_to(source).as_posix() for path in source.rglob("*") if not path.is_dir()}
    assert reasons["loop"] == "a link to a folder that is read already (.)"
    everything.add("loop")
    assert in_shards | set(reasons) == everything
    assert not in_shards & set(reasons)
    run(source, tmp_path / "again", val=0.2)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_what_cannot_be_prepared_is_refused_at_once(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.txt").touch()
    for match, arguments in {
        "holds no videos": {"source": tmp_path / "empty"},
        "does not exist": {"source": tmp_path / "nowhere"},
        "is not empty": {"output": tmp_path / "occupied"},
        "holds source": {"output": source},
        "dataset=x is unknown": {"dataset": "x"},
        "split=x is unknown": {"split": "x"},
        "must be shares": {"val": 0.9},
        "shard_mb=1e-07 is less than a byte": {"shard_mb": 1e-7},
        "trainlist02.txt|testlist02.txt|trainlist02": {"split": "official2"},
    }.items():
        output = arguments.pop("output", tmp_path / f"out{len(match)}")
        with pytest.raises(UserError, match=match):
            run(arguments.pop("source", source), output, **arguments)


def test_the_command_ends_with_one_message(tmp_path: Path) -> None:
    result = run_warm(["-m", "data.prepare", f"source={tmp_path}", f"output={tmp_path / 'out'}"])
    assert result.returncode == 1
    assert result.stderr.startswith("error: source=")
    assert "Traceback" not in result.stderr


def test_awkward_files_are_judged_as_an_expert_would(shared_clips: Path) -> None:
    files = sorted((shared_clips / "awkward").iterdir())
    results = {path.name: check_video(path.read_bytes()) for path in files}
    assert len(results) == 48
    wrong = {
        name: result
        for name, result in results.items()
        if isinstance(result, str) != (name in REFUSED)
        or (isinstance(result, Facts) and result.seekable == (name in IN_ORDER))
    }
    assert not wrong
    for name, reason in REFUSED.items():
        assert re.search(reason, str(results[name])), (name, results[name])
    rotated = results["rotated_270_640x360.mp4"]
    assert isinstance(rotated, Facts)
    assert (rotated.width, rotated.height) == (360, 640)  # as displayed


def test_ucf101_files_are_accepted_and_read_right(shared_clips: Path) -> None:
    files = sorted((shared_clips / "ucf101").rglob("*.avi"))[::8]
    for path in files:
        facts, frames = check_video(path.read_bytes()), decode_in_order(path.read_bytes())
        assert isinstance(facts, Facts), facts
        assert facts.num_frames == len(frames)
        assert facts.seekable
        window = read_frames(path.read_bytes(), range(8))
        np.testing.assert_allclose(window.astype(int), np.stack(frames[:8]).astype(int), atol=3)


def test_keys_are_safe_and_unique() -> None:
    keys = UniqueKeys()
    stems = ("a.b c/d", "a_b_c_d", "日本", "x" * 300, "a b-2", "a b", "a b")
    assert [keys.claim(stem) for stem in stems] == [
        *("a_b_c_d", "a_b_c_d-2", "video", "x" * 80, "a_b-2", "a_b", "a_b-3")
    ]


def test_equal_names_and_many_groups_take_linear_work() -> None:
    """Counted, not timed: how often a name is compared with the taken ones, a group with the taken groups."""

    asked: list[str] = []
    keys = UniqueKeys()
    get = keys._taken.get
    keys._taken.get = lambda key: asked.append(key) or get(key)  # type: ignore[method-assign,func-returns-value]
    assert [keys.claim("video") for _ in range(2000)][-1] == "video-2000"
    assert len(asked) <= 3 * 2000
    groups = np.arange(20_000)  # minutes, where it is quadratic
    assert take_groups(groups, np.zeros(20_000, int), 0.2, 0).sum() == 4000


def ucf101_like(classes: int, groups: int, clips: int) -> list[Video]:
    return [
        Video(f"C{c}/v_C{c}_g{g:02d}_c{i:02d}.avi", f"v_C{c}_g{g:02d}_c{i:02d}", f"C{c}", f"C{c}_g{g:02d}")
        for c in range(classes)
        for g in range(groups)
        for i in range(1 + (clips + g + c) % 7)
    ]


def split(
    videos: list[Video], kind: str, test: float, val: float = 0.0, seed: int = 0, lists: Path | None = None,
    unlisted: list[tuple[str, str]] | None = None,
) -> dict[str, list[Video]]:  # fmt: skip
    """The videos of each split; those of none are added to `unlisted`, or there are none."""
    splits, others = assign_splits(videos, kind, test, val, seed, lists)
    left_out = [] if unlisted is None else unlisted
    left_out += others
    assert unlisted is not None or not left_out
    return {name: [videos[place] for place in places] for name, places in splits.items()}


@pytest.mark.parametrize(("classes", "groups"), [(101, 25), (5, 2), (1, 6), (30, 1)])
def test_the_group_split_keeps_scenes_whole_and_classes_on_both_sides(classes: int, groups: int) -> None:
    videos = ucf101_like(classes, groups, 4)
    splits = split(videos, "group", 0.2)
    sides = defaultdict(set)
    for name, members in splits.items():
        for video in members:
            sides[video.group].add(name)
    assert all(len(names) == 1 for names in sides.values())
    assert sorted(v.key for part in splits.values() for v in part) == sorted(v.key for v in videos)
    if groups > 1:
        assert {v.label for v in splits["train"]} == {v.label for v in splits["test"]} == {v.label for v in videos}
    if classes > 1 and groups != 2:  # of two groups in a class one must go to the test side, a large one of six may
        assert abs(len(splits["test"]) / len(videos) - 0.2) < 0.03
    assert splits == split(videos, "group", 0.2)
    if groups == 25:
        assert splits != split(videos, "group", 0.2, seed=1)
        assert abs(len(split(videos, "group", 0.05)["test"]) / len(videos) - 0.05) < 0.01


def test_random_none_and_official_splits(tmp_path: Path) -> None:
    videos = ucf101_like(3, 4, 2)
    drawn = split(videos, "random", 0.2, 0.1)
    assert [len(drawn[name]) for name in ("test", "val")] == [round(0.2 * len(videos)), round(0.1 * len(videos))]
    assert sum(map(len, drawn.values())) == len(videos)
    assert split(videos, "none", 0.2) == {"train": videos, "test": []}
    (tmp_path / "trainlist01.txt").write_text("".join(f"{video.path} 1\n" for video in videos[3:]))
    (tmp_path / "testlist01.txt").write_text(f"{videos[0].path}\n{videos[1].path}\n")
    unlisted: list[tuple[str, str]] = []
    official = split(videos, "official1", 0.2, lists=tmp_path, unlisted=unlisted)
    assert official == {"train": videos[3:], "test": videos[:2]}
    assert unlisted == [(videos[2].path, "not in the lists of official1")]


def test_clips_are_written_in_a_random_order_of_the_seed(tmp_path: Path) -> None:
    """So that classes, which stand together in the source, do not stand together in the shards."""
    for label in "abc":
        for number in range(6):
            path = tmp_path / "videos" / label / f"{label}{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_mp4(draw_clip(np.random.default_rng((ord(label), number)), 5, 32, 44)))
    orders = {}
    for name, options in {"first": {}, "again": {}, "seed": {"seed": 1}, "source": {"shuffle": False}}.items():
        run(tmp_path / "videos", tmp_path / name, split="none", **options)
        index = json.loads((tmp_path / name / "train" / "index.json").read_text())
        assert index["recipe"]["shuffle"] == (name != "source")
        orders[name] = [key for entry in index["shards"] for key in entry["frames"]]
    assert orders["source"] == sorted(orders["source"])
    assert orders["first"] == orders["again"]
    assert sorted(orders["first"]) == orders["source"]
    assert len({tuple(order) for order in orders.values()}) == 3
    neighbours = zip(orders["first"], orders["first"][1:], strict=False)
    assert sum(a[0] == b[0] for a, b in neighbours) < 12  # of 17; 15 in the source's order, 5 by chance


@pytest.mark.parametrize("listed", [False, True])
def test_the_main_process_holds_no_object_for_a_file(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object with a path is some hundred bytes; arrays of numbers are all that may grow."""
    monkeypatch.setattr("tae.runtime.scratch.HELD", 100)
    monkeypatch.setattr("tae.runtime.scratch.READ", 4)

    def peak(files: int) -> int:
        source = tmp_path / str(files)
        source.mkdir()
        names = [f"{number:05d}.{'mp4' if number % 2 else 'doc'}" for number in range(files)]
        for name in names:
            (source / name).touch()
        if listed:
            source = source / "list.csv"
            source.write_text("\n".join(["path,caption", *(f"{name},a caption" for name in names)]))
        tracemalloc.start()
        found = find_videos(source, "folder")
        splits, _ = assign_splits(found.videos, "group", 0.2, 0.1, 0, None)
        make_plan(found.videos, splits, np.zeros((len(found.videos), 2), np.int64), 0, True, 100_000)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found.videos) == files // 2
        return highest

    few, many = 300, 1_500
    peak(10)  # whatever is made once
    assert (peak(many) - peak(few)) / (many - few) < 100


def test_a_random_share_is_that_of_python() -> None:
    """Published splits are its samples."""
    for count in (0, 1, 2, 21, 22, 85, 86, 400):
        for chosen in {0, min(1, count), min(6, count), count // 9, count // 3, count}:
            expected = random.Random(count).sample(range(count), chosen)
            assert np.flatnonzero(sample(count, chosen, count)).tolist() == sorted(expected)

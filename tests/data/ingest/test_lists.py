"""Sources that are lists: text with or without a byte order mark, CSV, parquet; what they say decides the splits."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.drawing import draw_clip, encode_mp4
from data.ingest.lists import Row, read_list
from data.ingest.sources import find_videos
from tae.runtime.errors import UserError
from tests.data.ingest.test_prepare import run

ROWS = [
    {"path": "a/0.mp4", "split": "train", "label": "run", "group": "film1"},
    {"path": "a/1.mp4", "split": "validation", "label": None, "group": "film2"},
    {"path": "b/2.mp4", "split": "", "label": "jump, high", "group": "film3"},
]
EXPECTED = [
    Row("a/0.mp4", "train", "run", "film1"),
    Row("a/1.mp4", "val", "", "film2"),
    Row("b/2.mp4", "", "jump, high", "film3"),
]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_and_csv_with_and_without_a_byte_order_mark(mark: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{mark}a/0.mp4\n\nb/2.mp4\n", encoding="utf-8")
    assert read_list(tmp_path / "list.txt") == [Row("a/0.mp4"), Row("b/2.mp4")]
    lines = ["path,split,label,group", "a/0.mp4,train,run,film1", "a/1.mp4,validation,,film2"]
    lines += ['b/2.mp4,,"jump, high",film3']
    (tmp_path / "list.csv").write_text(mark + "\n".join(lines), encoding="utf-8")
    assert read_list(tmp_path / "list.csv") == EXPECTED
    (tmp_path / "list.tsv").write_text(mark + "video\tkind\nx y.mp4\t3\n", encoding="utf-8")
    assert read_list(tmp_path / "list.tsv", {"path": "video", "label": "kind"}) == [Row("x y.mp4", label="3")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([row | {"score": 0.5} for row in ROWS]), tmp_path / "list.parquet")
    assert read_list(tmp_path / "list.parquet") == EXPECTED
    (tmp_path / "text.parquet").write_text("path\n")
    with pytest.raises(UserError, match="cannot be read as a parquet file"):
        read_list(tmp_path / "text.parquet")


def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,caption\nx.mp4,hello\n")
    (tmp_path / "b.csv").write_text("path,split\nx.mp4,holdout\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    for name, columns, match in (
        ("a.csv", {}, r"no column 'path'; its columns are: video, caption.*columns.path=NAME"),
        ("a.csv", {"path": "video", "label": "title"}, "no column 'title'"),
        ("a.csv", {"file": "video"}, "columns.file is unknown"),
        ("b.csv", {}, "row 1 has the split 'holdout'"),
        ("c.txt", {}, "cannot be read"),
        ("gone.csv", {}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=match):
            read_list(tmp_path / name, columns)


def test_everything_listed_is_a_video_or_has_its_reason(tmp_path: Path) -> None:
    for name in ("a.mp4", ".b.mp4", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text(f"a.mp4\n.b.mp4\nnotes.txt\ngone.mp4\na.mp4\n{tmp_path}\n")
    videos, rejected = find_videos(tmp_path / "list.txt", "folder")
    assert [video.path for video in videos] == ["a.mp4", ".b.mp4"]
    assert rejected == [
        ("notes.txt", "not a video by its extension (.txt)"),
        ("gone.mp4", "no such file"),
        ("a.mp4", "listed more than once"),
        (str(tmp_path), "not a regular file"),
    ]


def test_a_list_decides_splits_labels_and_groups(tmp_path: Path) -> None:
    lines = ["path,split,label,group"]
    for number, split in enumerate(("train", "test", "train", "val", "")):
        path = tmp_path / "videos" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_mp4(draw_clip(np.random.default_rng(number), 9, 32, 44)))
        lines.append(f"videos/{number}.mp4,{split},class{number},film{number % 2}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    outcome = run(tmp_path / "list.csv", tmp_path / "out")
    assert outcome.accepted == {"train": 2, "test": 1, "val": 1}
    assert outcome.rejected == [("videos/4.mp4", "the list names no split for it")]
    index = json.loads((tmp_path / "out" / "train" / "index.json").read_text())
    assert index["recipe"]["split"] == "list"
    assert sorted(index["shards"][0]["frames"]) == ["0", "2"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.csv").rename(tmp_path / "lists" / "list.csv")
    with pytest.raises(UserError, match=r"holds no videos .*videos/0.mp4: no such file"):
        run(tmp_path / "lists" / "list.csv", tmp_path / "nothing")
    source, output = tmp_path / "lists" / "list.csv", tmp_path / "grouped"
    grouped = run(source, output, split="group", test=0.5, root=tmp_path)
    assert sum(grouped.accepted.values()) == 5


def test_groups_from_paths_keep_clips_of_one_source_together(tmp_path: Path) -> None:
    for film in range(5):
        for clip in range(4):
            (tmp_path / f"film{film}_{clip:03d}.mp4").touch()
    videos, _ = find_videos(tmp_path, "folder", group_pattern=r"(film\d+)_\d+")
    assert sorted({video.group for video in videos}) == [f"film{film}" for film in range(5)]
    whole, _ = find_videos(tmp_path, "folder", group_pattern=r"film\d+")
    assert [video.group for video in whole] == [video.group for video in videos]
    for pattern, match in (("(", "no regular expression"), ("movie", "found in no path")):
        with pytest.raises(UserError, match=match):
            find_videos(tmp_path, "folder", group_pattern=pattern)

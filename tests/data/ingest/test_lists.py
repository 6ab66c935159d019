"""Sources that are lists: text with or without a byte order mark, CSV, parquet; what they say decides the splits."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.drawing import draw_clip, encode_mp4
from data.ingest.clips import LeftOut, NewClip, Ways, endings_of_cuts, make_clips
from data.ingest.files import endings_of_parts
from data.ingest.lists import Row, read_list
from data.ingest.shots import Encoding
from data.ingest.sources import Choice, find_videos
from data.ingest.splits import Cut, Video
from data.ingest.verification import verify
from data.loading.samples import read_samples
from data.processes.pool import Engine
from data.sampling.types import Clip
from data.shards.columns import rows_of
from data.shards.index import find_shards
from tae.runtime.errors import UserError
from tests.data.ingest.test_prepare import run
from tests.references.video import decode_in_order

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
    assert list(read_list(tmp_path / "list.txt")[0]) == [Row("a/0.mp4"), Row("b/2.mp4")]
    lines = ["path,split,label,group", "a/0.mp4,train,run,film1", "a/1.mp4,validation,,film2"]
    lines += ['b/2.mp4,,"jump, high",film3']
    (tmp_path / "list.csv").write_text(mark + "\n".join(lines), encoding="utf-8")
    assert list(read_list(tmp_path / "list.csv")[0]) == EXPECTED
    (tmp_path / "list.tsv").write_text(mark + "video\tkind\nx y.mp4\t3\n", encoding="utf-8")
    assert list(read_list(tmp_path / "list.tsv", {"path": "video", "label": "kind"})[0]) == [Row("x y.mp4", label="3")]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([row | {"score": 0.5} for row in ROWS]), tmp_path / "list.parquet")
    rows, kinds = read_list(tmp_path / "list.parquet")
    assert list(rows) == [replace(row, more={"score": 0.5}) for row in EXPECTED]
    assert kinds == {"score": "float64"}
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
    found = find_videos(tmp_path / "list.txt", "folder")
    assert [video.path for video in found.videos] == ["a.mp4", ".b.mp4"]
    assert list(found.rejected) == [
        ("a.mp4", "listed more than once"),
        ("notes.txt", "not a video by its extension (.txt)"),
        ("gone.mp4", "no such file"),
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
    assert list(outcome.rejected) == [("videos/4.mp4", "the list names no split for it")]
    index = json.loads((tmp_path / "out" / "train" / "index.json").read_text())
    assert index["recipe"]["split"] == "list"
    assert sorted(index["shards"][0]["frames"]) == ["0", "2"]
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.csv").rename(tmp_path / "lists" / "list.csv")
    with pytest.raises(UserError, match=r"holds no videos .*videos/0.mp4: no such file"):
        run(tmp_path / "lists" / "list.csv", tmp_path / "nothing")
    source, output = tmp_path / "lists" / "list.csv", tmp_path / "grouped"
    grouped = run(source, output, split="group", test=0.5, choice=Choice(root=tmp_path))
    assert sum(grouped.accepted.values()) == 5


def test_groups_from_paths_keep_clips_of_one_source_together(tmp_path: Path) -> None:
    for film in range(5):
        for clip in range(4):
            (tmp_path / f"film{film}_{clip:03d}.mp4").touch()
    videos = find_videos(tmp_path, "folder", choice=Choice(group_pattern=r"(film\d+)_\d+")).videos
    assert sorted({video.group for video in videos}) == [f"film{film}" for film in range(5)]
    whole = find_videos(tmp_path, "folder", choice=Choice(group_pattern=r"film\d+")).videos
    assert [video.group for video in whole] == [video.group for video in videos]
    for pattern, match in (("(", "no regular expression"), ("movie", "found in no path")):
        with pytest.raises(UserError, match=match):
            find_videos(tmp_path, "folder", choice=Choice(group_pattern=pattern))


def test_further_columns_become_fields_with_types_and_columns_of_the_index(tmp_path: Path) -> None:
    """Numbers stay numbers where a column holds nothing else; what preparation measures itself is not overwritten."""
    names = "video,caption,aesthetic score,code,fps,url,name,samples,bytes"  # the last four are an index's words
    lines = [names, 'a.mp4,"hello, you",5.25,007,1,x://a,A,1,2', "b.mp4,,,12,2,x://b,B,3,4"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for number, name in enumerate("ab"):
        clip = draw_clip(np.random.default_rng(number), 9, 32, 44)
        (tmp_path / f"{name}.mp4").write_bytes(encode_mp4(clip))
    run(tmp_path / "list.csv", tmp_path / "out", split="none", choice=Choice(columns={"path": "video"}))
    shards = find_shards(str(tmp_path / "out/train/*.tar"), "data.shards.train")
    columns = shards.indexes[0].columns
    keys = columns["key"][:]
    values = {name: dict(zip(keys, rows_of(columns[name], 0, 2), strict=True)) for name in columns}
    assert values["caption"] == {"a": "hello, you", "b": ""}
    assert values["aesthetic_score"]["a"] == 5.25
    assert math.isnan(values["aesthetic_score"]["b"])
    assert values["code"] == {"a": "007", "b": "12"}
    assert values["list_fps"] == {"a": 1, "b": 2}
    assert values["url"] == {"a": "x://a", "b": "x://b"}
    assert (values["name"]["b"], values["samples"]["b"], values["bytes"]["b"]) == ("B", 3, 4)
    samples = {
        sample.clip.key: sample.metadata
        for sample in read_samples(Clip(number, key, shards[0]) for number, key in enumerate(shards[0].frames))
    }
    assert {name: samples["a"][name] for name in ("caption", "aesthetic_score", "code", "list_fps", "num_frames")} == {
        "caption": "hello, you", "aesthetic_score": 5.25, "code": "007", "list_fps": 1, "num_frames": 9,
    }  # fmt: skip
    assert "aesthetic_score" not in samples["b"]
    assert not list(verify(tmp_path / "out" / "train", False, 60, Engine("local", 1)))


def test_paths_are_filled_from_columns_and_lists_in_cells_are_taken_apart(tmp_path: Path) -> None:
    """As Panda-70M's list has them: a row for each film, cells of Python lists, clips that are cut already or not."""
    cells = "\"[['0:00:01.500', '0:01:02'], ['1:00:00', '1:00:01']]\",\"['one', \"\"it's two\"\"]\",\"[0.5, 1]\""
    (tmp_path / "panda.csv").write_text(f"id,timestamp,caption,score\n-x,{cells}\n")
    explode = ("timestamp", "caption", "score")
    columns = {"path": "clips/{id}_{clip:05}.mp4", "start": "{timestamp[0]}", "end": "{timestamp[1]}"}
    rows, kinds = read_list(tmp_path / "panda.csv", columns, explode)
    first, second = rows
    assert [(row.path, row.start, row.end) for row in (first, second)] == [
        ("clips/-x_00000.mp4", 1.5, 62.0),
        ("clips/-x_00001.mp4", 3600.0, 3601.0),
    ]
    assert second.more == {"id": "-x", "timestamp": '["1:00:00", "1:00:01"]', "caption": "it's two", "score": 1}
    assert kinds == {"id": "string", "timestamp": "string", "caption": "string", "score": "float64"}
    (tmp_path / "bad.csv").write_text('id,caption,score\nx,"[1, 2]","[1]"\n')
    for options, match in (
        ({"columns": {"path": "{nothing}.mp4"}}, r"columns.path=\{nothing\}.mp4 cannot be filled from row 1"),
        ({"columns": {"path": "id"}, "explode": ["id"]}, "row 1 has no list in id"),
        ({"columns": {"path": "id"}, "explode": ["caption", "score"]}, "lists of different lengths"),
        ({"columns": {"path": "id"}, "explode": ["title"]}, "no column 'title'"),
        ({"columns": {"path": "id", "start": "id"}}, "row 1 has the time 'x'"),
        ({"captions": tmp_path / "bad.csv"}, "columns.caption=NAME"),
    ):
        with pytest.raises(UserError, match=match):
            read_list(tmp_path / "bad.csv", **options)  # type: ignore[arg-type]


def test_json_lines_and_captions_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"file_name": "a.mp4", "text": "one"}\n\n{"file_name": "b.mp4", "n": 3}\n')
    expected = [Row("a.mp4", more={"caption": "one", "n": None}), Row("b.mp4", more={"n": 3})]
    assert list(read_list(tmp_path / "list.jsonl", {"path": "file_name", "caption": "text"})[0]) == expected
    (tmp_path / "list.json").write_text('[{"id": "1", "label": "up"}]')
    assert list(read_list(tmp_path / "list.json", {"path": "{id}.webm"})[0]) == [
        Row("1.webm", label="up", more={"id": 1})
    ]
    (tmp_path / "videos.txt").write_text("a.mp4\nb.mp4\n")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    rows, kinds = read_list(tmp_path / "videos.txt", captions=tmp_path / "prompts.txt")
    assert [row.more["caption"] for row in rows] == ["one", "two"]
    assert kinds == {"caption": "string"}
    (tmp_path / "prompts.txt").write_text("one\n")
    with pytest.raises(UserError, match=r"has 1 lines, source=.* has 2"):
        read_list(tmp_path / "videos.txt", captions=tmp_path / "prompts.txt")
    (tmp_path / "list.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="is no list of objects"):
        read_list(tmp_path / "list.json")


def test_spaces_behind_commas_are_no_part_of_names_and_values(tmp_path: Path) -> None:
    """Without them a split that is given would be a field of the metadata, and a caption in quotes two cells."""
    (tmp_path / "list.csv").write_text('path, split , caption, score\na.mp4, train, "one, two", 3\nb.mp4, , x, \n')
    rows, kinds = read_list(tmp_path / "list.csv", {"path": "{split}/{path}"})
    assert [replace(row) for row in rows] == [
        Row("train/a.mp4", "train", more={"path": "a.mp4", "caption": "one, two", "score": 3}),
        Row("/b.mp4", more={"path": "b.mp4", "caption": "x", "score": None}),
    ]
    assert kinds["score"] == "float64"
    (tmp_path / "list.csv").write_text("path,caption\na.mp4,one, two\n")
    with pytest.raises(UserError, match="row 1 has more cells than the header"):
        read_list(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("path,score, path\na.mp4,1,b.mp4\n")
    with pytest.raises(UserError, match="several columns 'path'"):
        read_list(tmp_path / "list.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_whole_numbers_that_float64_does_not_hold_are_text(kind: str, tmp_path: Path) -> None:
    """For a whole column: 2**53 is the last of the numbers that are all held; measurements may have any digits."""
    ids, sizes, scores = (3, 1234567890123456789, 10**400), (1, 2**53, -(2**53)), (0.1, 1.2345678901234567, 2)
    numbers = list(zip(ids, sizes, scores, strict=True))
    text = "path,id,size,score\n" + "".join(f"a,{','.join(map(str, row))}\n" for row in numbers)
    lines = (f'{{"path": "a", "id": {a}, "size": {b}, "score": {c}}}\n' for a, b, c in numbers)
    (tmp_path / f"list.{kind}").write_text(text if kind == "csv" else "".join(lines))
    rows, kinds = read_list(tmp_path / f"list.{kind}")
    assert kinds == {"id": "string", "size": "float64", "score": "float64"}
    for row, number, size, score in zip(rows, ids, sizes, scores, strict=True):
        assert row.more == {"id": str(number), "size": size, "score": score}
        assert isinstance(row.more["size"], int)


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    """Not U+2028, U+0085 or a form feed, which captions have and JSON allows; and an empty line is an empty caption."""
    caption = "one\u2028two\x85three\x0cfour"
    (tmp_path / "list.jsonl").write_text(
        json.dumps({"path": "a.mp4", "caption": "x\u2028y"}, ensure_ascii=False) + "\r\n"
    )
    assert [row.more["caption"] for row in read_list(tmp_path / "list.jsonl")[0]] == ["x\u2028y"]
    (tmp_path / "videos.txt").write_bytes(b"a.mp4\r\nb.mp4\r\nc.mp4\r\n\r\n")
    for captions in (f"{caption}\n\nlast", f"{caption}\r\n\r\nlast\r\n\r\n\r\n"):
        (tmp_path / "prompts.txt").write_bytes(captions.encode())
        rows, _ = read_list(tmp_path / "videos.txt", captions=tmp_path / "prompts.txt")
        found = [(row.path, row.more["caption"]) for row in rows]
        assert found == [("a.mp4", caption), ("b.mp4", ""), ("c.mp4", "last")]
    for captions, count in (("one\nlast\n", 2), ("one\n\nlast\nmore\n", 4)):
        (tmp_path / "prompts.txt").write_text(captions)
        with pytest.raises(UserError, match=rf"has {count} lines, source=.* has 3"):
            read_list(tmp_path / "videos.txt", captions=tmp_path / "prompts.txt")


def test_rows_that_are_no_paths_are_rejected(tmp_path: Path) -> None:
    """A column of captions that was taken for that of paths; a name of more than 255 bytes is an error of the system."""
    (tmp_path / "a.mp4").touch()
    prompt = "a dog runs " * 30
    (tmp_path / "list.txt").write_text(f"{prompt}\n~nobody likes it.mp4\na.mp4\n")
    found = find_videos(tmp_path / "list.txt", "folder")
    assert [video.path for video in found.videos] == ["a.mp4"]
    assert list(found.rejected) == [
        (prompt.strip(), "cannot be read: File name too long"), ("~nobody likes it.mp4", "no such file"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "choice", "match"),
    [
        ("", Choice(captions="besides"), "captions=besides is for lists, and source=.* is a folder"),
        ("", Choice(root=Path("videos")), "root=videos is for lists, and source=.* is a folder"),
        ("", Choice(explode=["caption"]), "explode=caption is for lists"),
        ("", Choice(columns={"path": "path", "start": None}), "columns.start=None is for lists"),
        ("a.mp4", Choice(root=Path("videos")), "root=videos is for lists, and source=.* is a single file"),
        ("list.txt", Choice(captions="beside"), "captions=beside is no file .* is for folders"),
        ("list.txt", Choice(captions="besides"), "captions=besides is no file"),
    ],
)
def test_what_nothing_would_read_is_refused(source: str, choice: Choice, match: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("a dog")
    (tmp_path / "list.txt").write_text("a.mp4\n")
    with pytest.raises(UserError, match=match):
        find_videos(tmp_path / source, "folder", choice=choice)


def test_a_single_video_has_its_caption_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.txt").write_text("a dog")
    (video,) = find_videos(tmp_path / "a.mp4", "folder", choice=Choice(captions="beside")).videos
    assert video.more == {"caption": "a dog"}


def test_captions_beside_videos_are_no_rejected_files(tmp_path: Path) -> None:
    for name in ("a 1.mp4", "b.mp4", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "a 1.txt").write_text("a dog\n")
    found = find_videos(tmp_path, "folder", choice=Choice(captions="beside"))
    assert [video.more for video in found.videos] == [{"caption": "a dog"}, None]
    assert [path for path, _ in found.rejected] == ["notes.txt"]
    (tmp_path / "a 1.txt").unlink()
    with pytest.raises(UserError, match=r"no video .* has a \.txt of its name"):
        find_videos(tmp_path, "folder", choice=Choice(captions="beside"))


def test_files_of_a_hundred_gigabytes_are_refused_unread(tmp_path: Path) -> None:
    """Holes: no disk is filled. One in the place of a list, and one in that of a caption."""
    for name in ("list.csv", "videos.txt", "a.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(100 * 10**9)
    for name in ("list.csv", "videos.txt"):
        with pytest.raises(UserError, match="has 100 GB, which is more than a list"):
            read_list(tmp_path / name)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match="no video"):
        find_videos(tmp_path, "folder", choice=Choice(captions="beside"))


def test_archives_and_parts_of_files_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "data.zip").touch()
    with pytest.raises(UserError, match="is an archive"):
        find_videos(tmp_path / "data.zip", "folder")
    (tmp_path / "a.mp4").touch()
    (tmp_path / "list.csv").write_text("path,start,end\na.mp4,0,1\na.mp4,1,2\n")
    with pytest.raises(UserError, match=r"reencode=true.*columns.start=null"):
        find_videos(tmp_path / "list.csv", "folder")
    (video,) = find_videos(tmp_path / "list.csv", "folder", endings=endings_of_cuts).videos
    assert [str(cut) for cut in video.cuts] == ["0 to 1 s", "1 to 2 s"]
    choice = Choice(columns={"start": None, "end": None})
    again = find_videos(tmp_path / "list.csv", "folder", choice=choice)
    assert [video.more for video in again.videos] == [{"start": 0, "end": 1}]


def test_parts_of_a_file_are_cut_by_their_times(tmp_path: Path) -> None:
    """Overlapping, out of order, and one beyond the end, which is refused alone."""
    frames = draw_clip(np.random.default_rng(0), 40, 64, 96)
    content = encode_mp4(frames)
    cuts = [(1.0, 1.5), (0.0, 0.5), (0.25, None), (9.0, 10.0)]
    video = Video("a.mp4", "a", "", "a", cuts=tuple(Cut(a, b, "", {"caption": f"from {a}"}) for a, b in cuts))
    encoding = Encoding(False, 27.0, 8, None, 8, 5)
    clips = list(make_clips(video, content, Ways(encoding)))
    *made, left_out = sorted(clips, key=lambda clip: isinstance(clip, LeftOut))
    assert left_out == LeftOut("a.mp4 (9 to 10 s)", "no frame of the file, which has 1.67 s, is in it")
    reference = np.stack(decode_in_order(content)).astype(int)
    for clip, (start, end) in zip(made, cuts, strict=False):
        assert isinstance(clip, NewClip)
        first, last = round(start * 24), 40 if end is None else round(end * 24)
        assert clip.metadata["shot"] == (first, last)
        assert clip.metadata["caption"] == f"from {start}"
        found = np.stack(decode_in_order(clip.content)).astype(int)
        assert len(found) == last - first
        assert (
            np.abs(found - reference[first:last]).mean() < 3
        )  # H.264 at high quality; a neighbour is off by 10 or more
    assert [clip.key for clip in made if isinstance(clip, NewClip)] == ["a_000", "a_001", "a_002"]


def test_a_part_beyond_its_file_is_listed_with_its_reason(tmp_path: Path) -> None:
    """The part that there is has a key of its own, though another file's name is the one that it would have."""
    for number, name in enumerate(("a", "a_000")):
        (tmp_path / f"{name}.mp4").write_bytes(encode_mp4(draw_clip(np.random.default_rng(number), 24, 64, 96)))
    (tmp_path / "list.csv").write_text("path,start,end\na.mp4,0,0.5\na.mp4,9,10\na_000.mp4,0,1\n")
    found = run(tmp_path / "list.csv", tmp_path / "out", split="none", encoding=Encoding(False, 27.0, 8, None, 8, 23))
    assert found.accepted["train"] == 2
    assert list(found.rejected) == [("a.mp4 (9 to 10 s)", "no frame of the file, which has 1.00 s, is in it")]
    (shard,) = find_shards(str(tmp_path / "out/train/*.tar"), "data.shards.train")
    assert sorted(shard.frames) == ["a_000", "a_000-2"]


@pytest.mark.parametrize(("endings", "ending"), [(endings_of_cuts, "_000"), (endings_of_parts, "_part000")])
def test_keys_of_parts_are_no_other_files(endings: Callable[[int], list[str]], ending: str, tmp_path: Path) -> None:
    """Whichever is listed first; a file whose parts have no other's name keeps its own."""
    parts, other = "film.mp4,0,1\nfilm.mp4,1,2\n", f"film{ending}.mp4,,\n"
    for name in ("film", f"film{ending}", "more"):
        (tmp_path / f"{name}.mp4").touch()
    for rows, expected in (
        (parts + other, ["film", f"film{ending}-2", "more"]),
        (other + parts, [f"film{ending}", "film-2", "more"]),
    ):
        (tmp_path / "list.csv").write_text(f"path,start,end\n{rows}more.mp4,0,1\nmore.mp4,2,3\n")
        videos = find_videos(tmp_path / "list.csv", "folder", endings=endings).videos
        assert [video.key for video in videos] == expected

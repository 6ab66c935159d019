"""What a reader refuses before it reads: patterns, indexes, sizes; and what the stream's arguments may be."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest

from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4
from data.shards.format import INDEX, INDEX_VERSION
from data.shards.index import find_shards, read_recipe
from data.shards.index_writer import write_index
from data.shards.reader import open_samples
from data.shards.writer import shard_name
from data.storage.remote import Access, RetriedFile
from tae.runtime.errors import UserError


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards that may be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_a_recipe_in_words_has_no_python_in_it(copied: Path) -> None:
    recipe = {"dataset": "synthetic", "num_clips": {"train": 4, "val": 2, "test": 1}, "seed": 0, "shuffle": True}
    index = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(index | {"split": "test", "recipe": recipe}))
    told = read_recipe(find_shards(f"{copied}/*.tar", "x"), Access())
    assert told == "test of synthetic (num_clips 4/2/1, seed 0)"


def test_globs_braces_lists_and_repeats_find_each_shard_once(shards: Path) -> None:
    glob = find_shards(f"{shards}/shard-*.tar", "x")
    braces = find_shards(f"{shards}/shard-{{000000..000003}}.tar", "x")
    listed = find_shards([f"{shards}/shard-000001.tar", f"{shards}/shard-*.tar"], "x")
    assert list(glob) == list(braces)
    assert [len(shard.frames) for shard in glob] == [5, 3, 1, 4]
    assert [len(shard.frames) for shard in listed] == [3, 5, 1, 4]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{}/nothing-*.tar", "matches no shard"),
        ("{}/shard-{{000000..000009}}.tar", r"matches no shard: .*shard-000004\.tar does not exist"),
        ("pipe:touch {}/trace", r"would run a command. Set data\.allow_pipe=true"),
        ("gs://bucket/shard-000000.tar", r"only paths, http\(s\):// and s3:// addresses"),
        ("{}/index.json", "not listed in"),
        ("{}/shard-{{0..3.tar", "braces do not pair up"),
    ],
)
def test_a_pattern_that_cannot_be_served_is_refused(copied: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_shards(pattern.format(copied), "data.shards.train")
    assert not (copied / "trace").exists()


def test_an_index_that_does_not_fit_its_shards_is_refused(copied: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            find_shards(f"{copied}/shard-*.tar", "data.shards.train")

    index, shard = copied / "index.json", copied / "shard-000001.tar"
    text, content = index.read_text(), shard.read_bytes()
    shard.write_bytes(content[:-512])
    refused(r"shard-000001\.tar has \d+ bytes, its index\.json says \d+")
    shard.unlink()
    refused(r"lists shard-000001\.tar, which is not there")
    shard.write_bytes(content)
    index.write_text("{")
    refused("is not an index of shards")
    index.write_text(json.dumps(json.loads(text) | {"version": 3}))
    refused("has version 3; this program reads 1 and 2")
    index.unlink()
    refused("cannot be read")


def test_only_wanted_members_with_known_extensions_are_read(tmp_path: Path) -> None:
    """A pickle in a shard is not even looked at."""
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as tar:
        for name in ("a.mp4", "a.json", "a.pyd", "a.pickle", "b.mp4", "b.json"):
            (tmp_path / name).write_bytes(name.encode())
            tar.add(tmp_path / name, name)
    (tmp_path / "index.json").write_text(
        json.dumps(
            {
                "version": 1,
                "shards": [
                    {
                        "name": "shard-000000.tar",
                        "samples": 2,
                        "bytes": (tmp_path / "shard-000000.tar").stat().st_size,
                        "frames": {"a": 1, "b": 1},
                    }
                ],
            }
        )
    )
    (shard,) = find_shards(str(tmp_path / "shard-*.tar"), "x")
    with open_samples(shard, {"a"}) as samples:
        (sample,) = list(samples)
    assert {name for name in sample if not name.startswith("__")} == {"mp4", "json"}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_frames", 0),
        ("num_frames", -3),
        ("num_frames", 2.5),
        ("frame_stride", 0),
        ("resolution", 0),
        ("resolution", 7),
        ("batch_size", 0),
        ("num_workers", -1),
        ("shuffle_buffer", 0),
        ("short_clip", "stretch"),
        ("max_skipped", 1.5),
        ("shards", {"training": "x"}),
    ],
)
def test_a_value_out_of_range_is_named(make_module: Callable[..., ClipDataModule], argument: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{argument}"):
        make_module(**{argument: value})


def test_no_clip_long_enough_names_the_longest(make_module: Callable[..., ClipDataModule]) -> None:
    module = make_module(num_frames=16, frame_stride=2)
    with pytest.raises(UserError, match=r"A window spans 31 frames .* the longest of 13 clips has 24"):
        module.setup("fit")


def test_no_shard_and_no_clip_are_said_to_be_none(make_module: Callable[..., ClipDataModule], tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    write_index(tmp_path, {}, [{"name": "a.tar", "samples": 0, "bytes": 0, "frames": {}}])
    for shards, fault in (([], "it names no shard"), ([str(tmp_path / "a.tar")], "its 1 shards hold no clip")):
        with pytest.raises(UserError, match=rf"^data\.sources\.one\.shards=.*: {fault}\. Give others"):
            make_module(sources={"one": {"shards": shards}}).setup("fit")


def test_short_clips_are_left_out_or_filled_up(make_module: Callable[..., ClipDataModule]) -> None:
    assert sum(len(batch["keys"]) for batch in make_module().test_dataloader()) == 12
    filled = make_module(short_clip="repeat_last", batch_size=13).test_dataloader()
    (batch,) = list(filled)
    clip = batch["frames"][batch["keys"].index("clip2_0")]
    assert (clip[8:] == clip[8]).all()  # it has 9 frames
    assert (clip[7] != clip[8]).any()


@pytest.mark.parametrize("with_offsets", [True, False])
def test_a_part_that_begins_inside_a_shard_does_not_read_what_is_before(
    with_offsets: bool, write_shard: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of 20 clips of 300 kB: with offsets nothing else is read, without them little more than the headers."""
    received: list[int] = []
    receive = RetriedFile._receive
    monkeypatch.setattr(
        RetriedFile, "_receive", lambda file, wanted: received.append(len(data := receive(file, wanted))) or data
    )
    write_shard(tmp_path, {f"clip{number}": (bytes([number]) * 300_000, 9) for number in range(20)})
    if not with_offsets:
        index = json.loads((tmp_path / "index.json").read_text())
        del index["shards"][0]["offsets"]
        (tmp_path / "index.json").write_text(json.dumps(index))
    (shard,) = find_shards(str(tmp_path / "*.tar"), "x")
    received.clear()
    with open_samples(shard, {"clip19"}) as samples:
        (sample,) = samples
    assert sample["mp4"] == bytes([19]) * 300_000
    assert sum(received) < (400_000 if with_offsets else 3_000_000)  # of 6,000,000


def test_two_sets_with_the_same_keys_are_evaluated_together(
    make_module: Callable[..., ClipDataModule], write_shard: Callable[..., None], tmp_path: Path
) -> None:
    """As two runs of `data.prepare` over numbered files give them."""
    videos = [encode_mp4(draw_clip(np.random.default_rng(seed), 9, 32, 44)) for seed in range(2)]
    for name, video in zip(("first", "second"), videos, strict=True):
        write_shard(tmp_path / name / "test", {"0001": (video, 9), f"{name}_only": (video, 9)})
    patterns = [f"{tmp_path}/{name}/test/*.tar" for name in ("first", "second", "first")]
    module = make_module(shards={"test": patterns}, num_frames=4, batch_size=1)
    frames = {batch["keys"][0]: batch["frames"] for batch in module.test_dataloader()}
    assert set(frames) == {"first_0001", "first_only", "second_0001", "second_only"}
    assert (frames["first_0001"] != frames["second_0001"]).any()
    (again,) = module.eval_dataloader("test", only=["second_0001"])
    assert (again["frames"] == frames["second_0001"]).all()


def test_shards_in_a_folder_named_like_a_pattern_are_found(
    make_module: Callable[..., ClipDataModule], write_shard: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shard(tmp_path / "set[1] {x}", {"a": (b"x", 9)})
    for pattern in (
        f"{tmp_path}/set[1] {{x}}/shard-000000.tar",
        "~/set[[]1] {x}/*.tar",
        f"{tmp_path}/set[1] {{x}}/*.tar",
    ):
        assert [list(shard.frames) for shard in find_shards(pattern, "x")] == [["a"]]


def test_an_index_is_written_from_one_entry_at_a_time(tmp_path: Path) -> None:
    """A list of samples as JSON takes a hundred times their bytes in memory; the text is the one of all at once."""

    class Entry(dict):
        __hash__ = object.__hash__  # to be counted

    class Shards:
        def __init__(self, count: int) -> None:
            self.count = count

        def __iter__(self) -> Iterator[Entry]:
            alive: WeakSet[Entry] = WeakSet()
            for number in range(self.count):
                frames = {f"{number}-é-{sample}": sample + 1 for sample in range(3)}
                entry = Entry(name=shard_name(number), samples=3, bytes=10, sha256="", frames=frames, offsets=[0, 1, 2])
                alive.add(entry)
                assert len(alive) <= limit
                yield entry

    header = {"split": "train", "recipe": {"seed": 0}}
    for count in (0, 1, 9):
        limit = 2  # the one that is made, and the one before it
        write_index(tmp_path, header, Shards(count))
        limit = count
        whole = {"version": INDEX_VERSION} | header | {"shards": list(Shards(count))}
        assert (tmp_path / INDEX).read_text() == json.dumps(whole, indent=1) + "\n"

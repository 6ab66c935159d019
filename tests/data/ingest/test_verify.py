"""Every kind of damage to a folder of shards is found and named; what is in one is told truly."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.drawing import draw_clip, encode_mp4
from data.ingest.inspection import CAPTION_HEIGHT, TILE, contact_sheet, describe_samples
from data.ingest.pipeline import prepare
from data.ingest.verification import ShardTask, check_shard, find_folders, read_sample_metadata, shards_of, verify
from data.processes.pool import Engine
from tae.runtime.errors import UserError

ROOT = Path(__file__).parents[3]
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with two splits, made as a user makes it."""
    folder = tmp_path_factory.mktemp("verify")
    for number in range(5):
        (folder / "videos").mkdir(exist_ok=True)
        clip = np.full_like(draw_clip(np.random.default_rng(0), 9, 32, 44), 40 * number + 20)
        (folder / "videos" / f"clip{number}.mp4").write_bytes(encode_mp4(clip))
    prepare(
        "folder", folder / "videos", folder / "out", split=None, splits_dir=None, test=0.2, val=0.0, seed=0,
        timeout=60, shard_mb=0.005, encoding=None, engine=Engine(workers=1),
    )  # fmt: skip
    return folder / "out"


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the training split that may be damaged."""
    return Path(shutil.copytree(prepared / "train", tmp_path / "train"))


def rewrite(shard: Path, change: Callable[[Members], Any]) -> None:
    """Change the members of a shard, and the index so that the file as a whole fits it."""
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    change(members)
    with tarfile.open(shard, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    index = json.loads((shard.parent / "index.json").read_text())
    content = shard.read_bytes()
    index["shards"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (shard.parent / "index.json").write_text(json.dumps(index))


def first_video(members: Members) -> str:
    return next(name for name in members if name.endswith(".mp4"))


def damage_metadata(members: Members, **changes: Any) -> None:
    name = first_video(members).replace(".mp4", ".json")
    members[name] = json.dumps(json.loads(members[name]) | changes).encode()


def no_video(members: Members) -> None:
    """Bytes that do not decode, with the right hash."""
    members[first_video(members)] = b"no video"
    damage_metadata(members, sha256=hashlib.sha256(b"no video").hexdigest())


DAMAGE: dict[str, Callable[[Members], Any]] = {
    "is in the index, but not whole": lambda members: members.pop(first_video(members)),
    "extra.pyd: does not belong there": lambda members: members.update({"extra.pyd": b"x"}),
    "is no JSON object": lambda members: members.update({first_video(members).replace("mp4", "json"): b"[" * 9999}),
    "metadata of more than 1000000 bytes": lambda members: damage_metadata(members, note="x" * 1_000_001),
    "lacks fps": lambda members: damage_metadata(members, fps="fast"),
    "sha256 of its video": lambda members: members.update({first_video(members): b"other"}),
    "8 frames by its metadata, 9 by the index": lambda members: damage_metadata(members, num_frames=8),
    "not a video file that can be opened": no_video,
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_sample_is_named(message: str, copied: Path) -> None:
    rewrite(copied / "shard-000000.tar", DAMAGE[message])
    entry = json.loads((copied / "index.json").read_text())["shards"][0]
    problems = check_shard(ShardTask(copied / "shard-000000.tar", entry, decode=True))
    assert any(message in problem for problem in problems), problems


def test_damaged_shards_and_indexes_are_named(copied: Path) -> None:
    def problems() -> str:
        return "\n".join(verify(copied, False, 60, Engine(workers=1)))

    assert problems() == ""
    shard, index = copied / "shard-000000.tar", copied / "index.json"
    content, text = shard.read_bytes(), index.read_text()
    (copied / "stray.tar").touch()
    shard.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    assert "stray.tar: is not in the index" in problems()
    assert "shard-000000.tar: its sha256 is not the one in the index" in problems()
    shard.write_bytes(b"x" * len(content))
    assert "shard-000000.tar: cannot be read as a tar file" in problems()
    shard.write_bytes(content[:-512])
    assert "its index.json says" in problems()
    shard.write_bytes(content)
    twice = json.loads(text)
    twice["shards"][1]["frames"] |= twice["shards"][0]["frames"]
    twice["shards"][1]["samples"] = len(twice["shards"][1]["frames"])
    for column in ("offsets", "fps", "width", "height"):
        del twice["shards"][1][column]
    index.write_text(json.dumps(twice))
    assert "occurs more than once" in problems()
    other = json.loads(text)
    other["shards"][0]["width"][0] = 45
    index.write_text(json.dumps(other))
    assert "its width is 44 by its metadata, 45 by the index" in problems()
    other = json.loads(text)
    other["shards"][0]["offsets"][0] = 512
    index.write_text(json.dumps(other))
    assert "begins at byte 0, by the index at 512" in problems()
    for column, value in (("offsets", [10**9]), ("offsets", 0), ("fps", [24.0] * 9)):
        wrong = json.loads(text)
        wrong["shards"][0][column] = value
        index.write_text(json.dumps(wrong))
        assert column in problems()
    for damaged in ("{", "[]", '{"shards": [{}]}'):
        index.write_text(damaged)
        assert problems().startswith(str(index))


def test_damage_is_one_sentence_of_tables_and_pictures(prepared: Path, copied: Path) -> None:
    shard = copied / "shard-000000.tar"
    content = shard.read_bytes()

    def read_all() -> Any:
        return list(read_sample_metadata(shards_of(copied)))

    shard.write_bytes(b"x" * 512 + content[512:])  # the header, at the same size
    for look in (read_all, lambda: contact_sheet(copied, clips=9)):
        with pytest.raises(UserError, match=r"shard-000000\.tar cannot be read as a tar file: .*data\.verify shards="):
            look()
    shard.write_bytes(content)
    rewrite(shard, lambda members: damage_metadata(members, fps=None))
    with pytest.raises(UserError, match=r"shard-000000\.tar says no fps of .*data\.verify shards="):
        read_all()
    shutil.copy(prepared / "train" / "index.json", copied)
    shard.write_bytes(content)
    rewrite(shard, lambda members: members.pop(first_video(members)))
    assert contact_sheet(copied, clips=9).size[0] > 0  # says in its tile what is wrong


def command(name: str, *settings: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"data.{name}", *settings]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_ends_with_what_is_wrong(prepared: Path, copied: Path) -> None:
    good = command("verify", f"shards={prepared}", "workers=4", "decode=true")  # more than there are shards
    assert good.returncode == 0
    assert all(re.fullmatch(r"verifying .*: \d/\d shards, done in .*", line) for line in good.stderr.splitlines())
    assert "as the index says, every video decodes" in good.stdout
    (copied / "stray.tar").touch()
    bad = command("verify", f"shards={copied.parent}", "workers=1")
    assert bad.returncode == 1
    *_, first, second = bad.stderr.splitlines()  # before them, where it takes long, how far it is
    assert first.endswith("1 things are wrong.")
    assert second.endswith("stray.tar: is not in the index")
    with pytest.raises(UserError, match=r"has no index\.json"):
        find_folders(ROOT / "conf")


def test_the_table_and_the_picture_show_what_is_there(prepared: Path, tmp_path: Path) -> None:
    samples = [facts for _, facts in read_sample_metadata(shards_of(prepared / "train"))]
    column = describe_samples(samples)
    assert (column["clips"], column["frames"]) == ("4", "36")
    assert (column["sizes"], column["codecs"]) == ("44x32 (4)", "h264 (4)")
    sheet = np.asarray(contact_sheet(prepared / "train", clips=4))
    assert sheet.shape == (TILE[1] + CAPTION_HEIGHT, 4 * TILE[0], 3)
    for number, sample in enumerate(samples):  # each picture is of the clip's own brightness
        middle = sheet[TILE[1] // 2, number * TILE[0] + TILE[0] // 2]
        assert np.abs(middle.astype(int) - (40 * int(sample["source"][4]) + 20)).max() < 6
    shown = command("inspect", f"shards={prepared}", f"sheets={tmp_path}", "clips=2")
    assert shown.returncode == 0, shown.stderr
    with Image.open(tmp_path / "train.png") as image:
        assert image.width == 2 * TILE[0]

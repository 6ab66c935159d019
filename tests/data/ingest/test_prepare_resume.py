"""A preparation that is stopped, starved of space or started twice: the shards are the same, or it says why not."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

import data.ingest.bucket
from data.drawing import draw_clip, encode_mp4
from data.ingest.bucket import recover
from data.ingest.pipeline import prepare
from data.ingest.splits import Video
from data.processes.pool import Engine
from data.shards.writer import ShardFile
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tests.data.ingest.test_prepare import contents
from tests.fakes.faults import fill_with_faults
from tests.fakes.killed_writers import check_nothing, one_after_the_other
from tests.fakes.processes import running

ROOT = Path(__file__).parents[3]
CLIPS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small videos, enough of them for several shards of a hundredth of a megabyte, and one that is none."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(CLIPS):
        clip = draw_clip(np.random.default_rng(number), 12, 32, 44)
        (folder / f"{number:02d}.mp4").write_bytes(encode_mp4(clip))
    (folder / "text.mp4").write_text("no video")
    return folder


def run(source: Path, output: Path, **overrides: Any) -> Any:
    options: dict[str, Any] = {"dataset": "folder", "split": None, "splits_dir": None, "test": 0.2, "val": 0.0}
    options |= {"seed": 0, "timeout": 60.0, "shard_mb": 0.01, "encoding": None, "engine": Engine(workers=1)}
    return prepare(source=source, output=output, **(options | overrides))


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What comes out when nothing happens."""
    output = tmp_path_factory.mktemp("undisturbed")
    run(source, output / "out")
    shards = contents(output / "out")
    assert sum(name.endswith(".tar") for name in shards) > 3
    return shards


def command(source: Path, output: Path, *overrides: str) -> list[str]:
    settings = [f"source={source}", f"output={output}", "timeout=60.0", "shard_mb=0.01", "workers=2", *overrides]
    return [sys.executable, "-m", "data.prepare", *settings]


def test_two_workers_write_what_one_writes(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run(source, tmp_path / "out", engine=Engine(workers=2))
    assert contents(tmp_path / "out") == undisturbed


class StopError(Exception):
    """Raised in the middle of things."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child processes."""
    monkeypatch.setattr("data.ingest.pipeline.run_isolated", one_after_the_other)


@pytest.mark.parametrize("before", range(1, CLIPS + 1, 5))
def test_stopped_while_checking_it_resumes(
    here: None, before: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """No file is checked twice, even where the last line of a log was cut off: only that one."""
    checked: list[str] = []
    make_clips = data.ingest.bucket.make_clips

    def counted(video: Video, *rest: Any) -> Any:
        if len(checked) == before:
            raise StopError
        checked.append(video.path)
        return make_clips(video, *rest)

    monkeypatch.setattr("data.ingest.bucket.make_clips", counted)
    monkeypatch.setattr("data.ingest.bucket.WriteError", StopError)  # what no file is blamed for
    with pytest.raises(StopError):
        run(source, tmp_path / "out")
    log = max((tmp_path / "out" / ".prepare" / "buckets").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    log.write_bytes(log.read_bytes().rpartition(b'{"begun')[0][:-3])
    drafts = [log.with_name(f".{log.name}.4711.tmp"), tmp_path / "out" / ".rejected.csv.4711.tmp"]
    for draft in drafts:  # as a killed writer leaves them
        draft.touch()
    first_part, last = checked[:-1], checked[-1]
    checked.clear()
    before = CLIPS + 2
    run(source, tmp_path / "out")
    assert not any(draft.exists() for draft in drafts)
    assert not set(checked) & set(first_part)
    assert len(checked) == len(set(checked))
    assert len({*checked, *first_part, last}) == CLIPS + 1
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("before", range(0, 6 * CLIPS, 17))
def test_on_a_full_disk_it_ends_with_a_message_and_resumes(
    here: None, before: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whichever write it is; no file is blamed for it, no finished bucket is written again."""
    written: list[int] = []
    append = ShardFile.append

    def until_full(shard: ShardFile, content: bytes) -> None:
        if len(written) == before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(content))
        append(shard, content)

    with monkeypatch.context() as patch:
        patch.setattr(ShardFile, "append", until_full)
        with pytest.raises(UserError, match=r"No space left on device.*repeat the command"):
            run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "rejected.csv").exists()
    assert not list((tmp_path / "out").glob("[a-z]*"))
    finished = {path: path.read_bytes() for path in (tmp_path / "out/.prepare/buckets").glob("*.tar")}
    for path in finished:
        assert path.read_bytes() in undisturbed.values()
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed


def tiny_files(folder: Path) -> Path:
    """Files for a trivial check: copies of one another, in several buckets, and one that is refused after its clip."""
    folder.mkdir()
    names = {f"{number:02d}": bytes([number]) * 2_500 for number in range(14)}
    names |= {"01_copy": names["01"], "y_copy": names["03"], "z_copy": names["03"], "a_bad": b"bad"}
    for name, content in names.items():
        (folder / f"{name}.mp4").write_bytes(content)
    return folder


@pytest.mark.parametrize("step", [37, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_any_write_it_resumes(step: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fakes.killed_writers", tiny_files(tmp_path / "videos"), tmp_path, str(step)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    undisturbed = contents(tmp_path / "undisturbed")
    assert sum(name.endswith(".tar") for name in undisturbed) > 3
    outputs = list(range(1, json.loads(result.stdout)["writes"] + 1, step))
    assert len(outputs) > 3
    for number in outputs:
        assert contents(tmp_path / str(number)) == undisturbed, f"killed before write {number}"


def test_of_files_with_the_same_content_the_first_stays(here: None, tmp_path: Path, monkeypatch: Any) -> None:
    """By the source's order, wherever the buckets are; the index says where samples begin in what is left."""
    monkeypatch.setattr("data.ingest.bucket.make_clips", check_nothing)
    outcome = run(tiny_files(tmp_path / "videos"), tmp_path / "out", shard_mb=0.012)
    assert list(outcome.rejected) == [
        ("01_copy.mp4", "same content as 01.mp4"),
        ("a_bad.mp4", "bad"),
        ("y_copy.mp4", "same content as 03.mp4"),
        ("z_copy.mp4", "same content as 03.mp4"),
    ]
    assert sum(outcome.accepted.values()) == 14
    for index_file in (tmp_path / "out").glob("*/index.json"):
        for entry in json.loads(index_file.read_text())["shards"]:
            path = index_file.parent / entry["name"]
            assert (path.stat().st_size, file_sha256(path)) == (entry["bytes"], entry["sha256"])
            with tarfile.open(path) as tar:
                begins = {member.name: member.offset for member in tar}
            assert [begins[f"{key}.json"] for key in entry["frames"]] == entry["offsets"]


def test_a_log_that_knows_more_than_the_disk_is_believed_as_far_as_the_shard_goes(
    here: None, source: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut leaves it: the end of the shard is missing, or is there with other bytes."""
    monkeypatch.setattr("data.ingest.bucket._finish", lambda *_: (_ for _ in ()).throw(StopError))
    for damage in (lambda content: content[:-2_000], lambda content: content[:-2_000] + bytes(2_000), lambda _: b""):
        with pytest.raises(StopError):
            run(source, tmp_path / "out")
        (shard,) = (tmp_path / "out/.prepare/buckets").glob("*.partial")
        shard.write_bytes(damage(shard.read_bytes()))
        log = shard.with_suffix(".jsonl")
        assert len(recover(log, shard).lines) < log.read_text().count("state")
    monkeypatch.undo()
    monkeypatch.setattr("data.ingest.pipeline.run_isolated", one_after_the_other)
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed


def test_a_hang_or_a_crash_costs_one_file_of_its_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a", "dies", "b", "hangs", "c", "raises"):
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(name.encode() * 900)
    monkeypatch.setattr("data.ingest.pipeline.fill_bucket", fill_with_faults)
    outcome = run(tmp_path / "videos", tmp_path / "out", split="none", timeout=0.5, shard_mb=1)
    assert outcome.accepted == {"train": 3, "test": 0}
    assert list(outcome.rejected) == [
        ("dies.mp4", "its check ended the process (exit code 7)"),
        ("hangs.mp4", "its check took more than 0.5 s"),
        ("raises.mp4", "its check failed: ZeroDivisionError: raises"),
    ]


def test_a_finished_output_stays_as_it_is(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert run(source, tmp_path / "out") == run(source, tmp_path / "out")
    (tmp_path / "out" / ".prepare" / "buckets").mkdir()  # of a process that was killed before it removed them
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out" / ".prepare" / "buckets").exists()
    with pytest.raises(UserError, match=r"was begun with seed=0 \(now 1\), shard_mb=0.01 \(now 2\)"):
        run(source, tmp_path / "out", seed=1, shard_mb=2)
    with FileLock(tmp_path / "out" / ".prepare" / "lock"), pytest.raises(UserError, match="another process"):
        run(source, tmp_path / "out")
    more = Path(shutil.copytree(source, tmp_path / "more"))
    (more / "new.mp4").write_bytes(encode_mp4(draw_clip(np.random.default_rng(99), 12, 32, 44)))
    shutil.copytree(tmp_path / "out", tmp_path / "grown")
    settings = tmp_path / "grown" / ".prepare" / "settings.json"
    settings.write_text(settings.read_text().replace(str(source), str(more)))
    with pytest.raises(UserError, match=r"source has changed since output=.* was begun"):
        run(more, tmp_path / "grown")
    before = tmp_path / "before" / ".prepare"
    before.mkdir(parents=True)
    (before / "settings.json").write_text('{"dataset": "folder", "seed": 0}')
    with pytest.raises(UserError, match=r"was begun by an earlier version of data\.prepare"):
        run(source, before.parent)


@pytest.mark.slow
def test_a_second_writer_is_refused_until_the_first_is_killed(source: Path, tmp_path: Path) -> None:
    """The lock goes with its owner, however that ends."""
    options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "start_new_session": True}
    with running(command(source, tmp_path / "out"), **options) as first:
        logs = tmp_path / "out" / ".prepare" / "buckets"
        while not any(log.stat().st_size for log in logs.glob("*.jsonl")):
            assert first.poll() is None
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match="another process"):
            run(source, tmp_path / "out")
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    run(source, tmp_path / "out", split="random")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_at_random_moments_it_goes_on(
    sign: signal.Signals, source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The command is stopped 8 times by each signal, later and later."""
    rng = random.Random(sign)
    stopped = 0
    for attempt in range(8):
        running = subprocess.Popen(
            command(source, tmp_path / "out"),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            # A shell starts what it puts into the background with SIGINT ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        lock = tmp_path / "out" / ".prepare" / "lock"
        while not lock.exists() and running.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6 * (attempt + 1)))
        running.send_signal(sign)
        _, errors = running.communicate(timeout=300)
        stopped += running.returncode != 0
        if running.returncode == 1 and "checking" in errors:  # before that python itself is stopped, while it imports
            assert "error: Stopped." in errors
    assert stopped > 2
    ended = subprocess.run(command(source, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, check=True)
    assert "accepted: train" in ended.stdout
    assert contents(tmp_path / "out") == undisturbed

"""A preparation that is stopped, starved of space or started twice: the shards are the same, or it says why not."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from data.drawing import draw_clip, encode_mp4
from data.ingest.journal import Journal
from data.ingest.pipeline import prepare
from data.processes.pool import Engine
from data.shards.writer import ShardWriter
from tae.runtime.errors import UserError
from tests.data.ingest.test_prepare import contents
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


@pytest.mark.parametrize("before", range(1, CLIPS + 1, 3))
def test_stopped_while_checking_it_goes_on(
    before: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is checked twice, even where the last line of the journal was cut off: only that one."""
    checked: list[Path] = []

    def in_this_process(function: Any, tasks: Any, *_: Any) -> Any:
        for task in tasks:
            if len(checked) == before:
                raise StopError
            checked.append(task.path)
            yield task, function(task)

    monkeypatch.setattr("data.ingest.pipeline.run_isolated", in_this_process)
    with pytest.raises(StopError):
        run(source, tmp_path / "out")
    journal = tmp_path / "out" / ".prepare" / "checked.jsonl"
    journal.write_bytes(journal.read_bytes()[:-3])
    drafts = [journal.parent / "clips" / ".03.mp4.4711.partial", tmp_path / "out" / ".rejected.csv.4711.partial"]
    for draft in drafts:  # as a killed writer leaves them
        draft.touch()
    last, first_part = checked[-1], set(checked)
    checked *= 0
    before = CLIPS + 2
    run(source, tmp_path / "out")
    assert not any(draft.exists() for draft in drafts)
    assert not (set(checked) & first_part) - {last}
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("before", range(0, CLIPS, 2))
def test_stopped_while_writing_it_goes_on(
    before: int, source: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, whichever sample it is: no half shard has a name, no finished one is written again."""
    written: list[str] = []
    write = ShardWriter.write

    def until_full(writer: ShardWriter, key: str, *rest: Any) -> None:
        if len(written) == before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(key)
        write(writer, key, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", until_full)
        with pytest.raises(UserError, match=r"No space left on device.*repeat the command"):
            run(source, tmp_path / "out")
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/shard-*.tar")}
    for path in finished:
        assert path.read_bytes() == undisturbed[path.relative_to(tmp_path / "out").as_posix()]
    assert not list((tmp_path / "out").glob("*/*.partial"))
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_full_disk_while_staging_is_no_fault_of_the_file(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """As root, permissions stop nobody; a file in the place of the folder does, and is as final as a full disk."""
    output = tmp_path / "out"
    with Journal(output, {}):
        pass
    (output / ".prepare" / "settings.json").unlink()
    shutil.rmtree(output / ".prepare" / "clips")
    (output / ".prepare" / "clips").symlink_to("/proc/self/fdinfo")  # exists, and takes no files
    with pytest.raises(UserError, match=r"clips/.*cannot be written.*repeat the command"):
        run(source, output)
    assert not (output / "rejected.csv").exists()
    (output / ".prepare" / "clips").unlink()
    run(source, output)
    assert contents(output) == undisturbed


def test_a_finished_output_stays_as_it_is(source: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    assert run(source, tmp_path / "out") == run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out" / ".prepare" / "clips").exists()
    with pytest.raises(UserError, match=r"was begun with seed=0 \(now 1\), shard_mb=0.01 \(now 2\)"):
        run(source, tmp_path / "out", seed=1, shard_mb=2)
    with FileLock(tmp_path / "out" / ".prepare" / "lock"), pytest.raises(UserError, match="another process"):
        run(source, tmp_path / "out")
    more = Path(shutil.copytree(source, tmp_path / "more"))
    (more / "new.mp4").write_bytes(encode_mp4(draw_clip(np.random.default_rng(99), 12, 32, 44)))
    shutil.copytree(tmp_path / "out", tmp_path / "grown")
    settings = tmp_path / "grown" / ".prepare" / "settings.json"
    settings.write_text(settings.read_text().replace(str(source), str(more)))
    with pytest.raises(UserError, match="source has changed since the first shards"):
        run(more, tmp_path / "grown")


def test_a_second_writer_is_refused_until_the_first_is_killed(source: Path, tmp_path: Path) -> None:
    """The lock goes with its owner, however that ends."""
    options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE, "start_new_session": True}
    with running(command(source, tmp_path / "out"), **options) as first:
        journal = tmp_path / "out" / ".prepare" / "checked.jsonl"
        while not (journal.exists() and journal.stat().st_size):
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

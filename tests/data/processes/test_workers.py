"""Worker processes that hang or die: never a hang of the run, and no other clip is lost or repeated."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data.loading.stream
from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4
from data.loading.loader import ClipLoader
from tae.runtime.errors import UserError
from tests.fakes.faulty_stream import FaultyStream
from tests.fakes.processes import running

Make = Callable[..., ClipDataModule]
GOOD = {f"good{number}" for number in range(8)}


def keys_of(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["keys"]]


@pytest.fixture
def make_loader(
    make_module: Make, write_shard: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ClipLoader]]:
    """A loader with two workers over eight good clips and one with the given bytes among them."""
    monkeypatch.setattr("data.loading.loader.ClipStream", FaultyStream)
    video = encode_mp4(draw_clip(np.random.default_rng(0), 16, 32, 44))

    def make(evil: bytes, split: str = "train", **overrides: Any) -> ClipLoader:
        names = [*(f"good{number}" for number in range(5)), "evil", *(f"good{number}" for number in range(5, 8))]
        write_shard(tmp_path / "s", {name: (evil if name == "evil" else video, 16) for name in names})
        shards = {split: str(tmp_path / "s" / "shard-*.tar")}
        settings = {"num_workers": 2, "batch_size": 1, "max_skipped": 0.2, "decode_timeout": 5.0}
        module = make_module(shards=shards, **(settings | overrides))
        return module.train_dataloader() if split == "train" else module.eval_dataloader(split)

    yield make
    monkeypatch.setattr(data.loading.stream, "open_video", data.decode.open_video)


@pytest.mark.parametrize(
    ("evil", "reason"),
    [
        ("hangs", "not done after 5 s (data.decode_timeout)"),
        ("SIGSEGV", "signal SIGSEGV"),
        pytest.param("SIGKILL", "killed by SIGKILL, as systems do that run out of memory", marks=pytest.mark.slow),
        pytest.param("exits", "exit code 3", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_hangs_or_dies_costs_that_clip_alone(
    make_loader: Callable[..., ClipLoader], evil: str, reason: str, tmp_path: Path
) -> None:
    """The order is that of a run in which the clip is merely broken, also when it is resumed after the death."""
    broken = make_loader(b"nothing")
    expected = keys_of([*broken, *broken])
    skipped = tmp_path / "output" / "skipped.jsonl"
    skipped.unlink()
    started = time.monotonic()
    loader = make_loader(evil.encode())
    got = keys_of([*loader, *islice(iter(loader), 5)])
    assert time.monotonic() - started < 60  # seconds: the promise is that it is never a hang
    assert loader._worker_deaths == 1
    resumed = make_loader(evil.encode())
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    got += keys_of(islice(iter(resumed), 4))
    assert got == expected
    assert resumed._worker_deaths == 0  # the clip is known by then
    lines = [json.loads(line) for line in skipped.read_text().splitlines()]
    assert {(line["key"], line["reason"]) for line in lines} == {
        ("evil", f"decoding it ended a worker process: {reason}")
    }


@pytest.mark.parametrize("evil", [pytest.param("hangs", marks=pytest.mark.slow), "SIGSEGV"])
def test_an_evaluation_lists_the_clip_as_skipped(make_loader: Callable[..., ClipLoader], evil: str) -> None:
    loader = make_loader(evil.encode(), "test", batch_size=2)
    for _ in range(2):
        assert sorted(keys_of(loader)) == sorted(GOOD)
        assert [fault["key"] for fault in loader.skipped] == ["evil"]
    assert loader._worker_deaths == 1


def test_more_deaths_than_allowed_end_the_run_with_the_clip(make_loader: Callable[..., ClipLoader]) -> None:
    loader = make_loader(b"SIGSEGV", max_skipped=0.0)
    with pytest.raises(UserError, match=r"ended 1 times, the last one at clip evil .*signal SIGSEGV.* allows 0"):
        list(chain(loader, loader))  # in the second epoch at the latest the clip is due


def test_workers_killed_between_clips_lose_and_repeat_nothing(make_loader: Callable[..., ClipLoader]) -> None:
    undisturbed = make_loader(b"nothing")
    expected = keys_of([*undisturbed, *undisturbed])
    others = {child.pid for child in multiprocessing.active_children()}
    loader = make_loader(b"nothing", max_skipped=1.0)
    batches, got = iter(loader), []
    for _ in range(2):
        got += keys_of(islice(batches, 2))
        time.sleep(1.0)  # by then the workers have read ahead as far as they may
        for child in multiprocessing.active_children():
            if child.pid not in others:
                os.kill(child.pid or 0, signal.SIGKILL)
    got += keys_of([*batches, *loader])
    assert got == expected
    assert loader._worker_deaths >= 2  # the second worker of a pair may be ended before it is found dead
    assert loader._count.failed >= 1  # the clip that is broken, and no other


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_to_a_whole_run_are_the_training_process_business(
    make_loader: Callable[..., ClipLoader], number: int
) -> None:
    """Schedulers send them to every process of a run, which still has a step to finish."""
    others = {child.pid for child in multiprocessing.active_children()}
    loader = make_loader(b"nothing")
    batches = iter(loader)
    first = next(batches)
    workers = [child for child in multiprocessing.active_children() if child.pid not in others]
    assert len(workers) == 2
    for pid in (forkserver._forkserver._forkserver_pid, *(child.pid for child in workers)):  # type: ignore[attr-defined]
        os.kill(pid or 0, number)
    assert len(keys_of([first, *batches])) == len(loader)
    assert loader._worker_deaths == 0
    for worker in workers:  # and they can still be ended: at its exit Python waits for what it has terminated
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL


TRAINING = """
import multiprocessing, sys, time
from data.datamodule import ClipDataModule

if __name__ == "__main__":
    module = ClipDataModule(
        {"test": sys.argv[1]}, num_frames=4, frame_stride=1, resolution=16, batch_size=1, num_workers=2,
        short_clip="skip", max_skipped=0.0, shuffle_buffer=1, seed=0, output_dir=sys.argv[2],
    )
    batches = iter(module.test_dataloader())
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_no_worker_outlives_a_training_that_is_killed(make_loader: Callable[..., ClipLoader], tmp_path: Path) -> None:
    make_loader(b"nothing")  # for the shards
    (tmp_path / "training.py").write_text(TRAINING)
    root = Path(data.loading.stream.__file__).parents[2]
    command = [sys.executable, tmp_path / "training.py", str(tmp_path / "s" / "shard-*.tar"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with running(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        workers = [int(pid) for pid in training.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


def is_running(pid: int) -> bool:
    """Neither gone nor waiting for somebody to take note of its end."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_fault_of_the_program_in_a_worker_is_not_taken_for_a_death(make_loader: Callable[..., ClipLoader]) -> None:
    loader = make_loader(b"nothing")
    window = replace(loader.sampling.window, frame_stride=None)  # type: ignore[arg-type]
    loader.sampling = replace(loader.sampling, window=window)
    with pytest.raises(TypeError, match="worker process"):
        next(iter(loader))
    assert loader._worker_deaths == 0


def test_torch_gives_a_batch_of_the_size_after_a_death(make_loader: Callable[..., ClipLoader]) -> None:
    (first, *_) = list(make_loader(b"exits", batch_size=3, decode_timeout=60.0))
    assert first["frames"].shape == (3, 16, 16, 16, 3)
    assert first["frames"].dtype == torch.uint8


@pytest.mark.slow
def test_no_worker_imports_the_main_module(tmp_path: Path) -> None:
    """That is train.py, with Lightning and all metrics: it took seconds of each worker of each validation."""
    script = tmp_path / "main.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[3])!r})\nprint('imported', flush=True)\n"
        "from data.processes.workers import worker_context\n"
        "if __name__ == '__main__':\n"
        "    worker = worker_context().Process(target=exec, args=('print(\"worked\")',))\n"
        "    worker.start()\n    worker.join()\n    print(worker.exitcode, __file__)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["imported", "worked", f"0 {script}"], done.stderr

"""Signals as schedulers send them, to real processes: one, a group with its workers, two with DDP, a SLURM job."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from reliability.tiny_run import assert_same_state, finish, start

from tae.model.checkpoint_file import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RUN = (
    "callbacks.last.every_n_steps=1000",
    "trainer.val_check_interval=7",
    "data.num_workers=0",
    "scheduler=constant",  # the number of steps is set after the signal
)
TWO = ("trainer.devices=2", "strategy=ddp")
SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "tae",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def await_step(process: subprocess.Popen[str], output: Path, step: int) -> None:
    """Return when the first checkpoint at or after this step is there (one is written before each validation)."""
    while process.poll() is None:
        last = output / "checkpoints" / "last.ckpt"
        if last.exists() and read_checkpoint(last)["global_step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended with {process.returncode}: {process.communicate()[1]}")


def step_of(output: Path) -> int:
    return read_checkpoint(output / "checkpoints" / "last.ckpt")["global_step"]


def stop_and_go_on(output: Path, cache: Path, number: int, to: str, *overrides: str) -> None:
    """Stop a run with a signal, let it go on to the step after that, and compare with a run to that step in one go."""
    process = start(output, cache, *RUN, *overrides, "trainer.max_steps=100_000")
    await_step(process, output, 7)
    if to == "first process":
        os.kill(process.pid, number)
    elif to == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(child_of(process.pid), number)
    code, _, errors = finish(process, timeout=300)
    assert f"{signal.Signals(number).name}: stopped after step" in errors, errors
    assert errors.count("Resume with the same command") == 1
    assert "Traceback" not in errors
    assert code == 128 + number
    end = step_of(output) + 3
    assert re.search(rf"last.ckpt holds step {end - 3}\b", errors)
    for folder in (output, output.with_name("whole")):
        code, _, errors = finish(start(folder, cache, *RUN, *overrides, f"trainer.max_steps={end}"))
        assert code == 0, errors
    last = Path("checkpoints", "last.ckpt")
    assert_same_state(output.with_name("whole") / last, output / last)


def child_of(parent: int) -> int:
    """The process with LOCAL_RANK=1 that Lightning started."""
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", "train_ddp_process_1"], capture_output=True, text=True)
    return int(found.stdout.split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_one_process(number: int, cache: Path, tmp_path: Path) -> None:
    stop_and_go_on(tmp_path / "run", cache, number, "first process")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_data_workers_outlive_a_signal_to_the_whole_group(number: int, cache: Path, tmp_path: Path) -> None:
    stop_and_go_on(tmp_path / "run", cache, number, "group", "data.num_workers=3")


@pytest.mark.parametrize("to", ["first process", "other process", "group"])
def test_two_processes_stop_at_the_same_step(to: str, cache: Path, tmp_path: Path) -> None:
    stop_and_go_on(tmp_path / "run", cache, signal.SIGTERM, to, *TWO)


def test_a_second_signal_ends_at_once(cache: Path, tmp_path: Path) -> None:
    """A worker that is stopped keeps the running step from ending."""
    process = start(tmp_path, cache, *RUN, "data.num_workers=1", "trainer.max_steps=100_000")
    await_step(process, tmp_path, 7)
    workers = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
    for worker in workers:
        if int(worker) != process.pid:
            os.kill(int(worker), signal.SIGSTOP)
    time.sleep(2)  # the batches that were ready are used up
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(6)  # longer than one request may take to be delivered
    assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    try:
        assert process.wait(120) == -signal.SIGTERM
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert "SIGTERM: ended at once" in errors


def test_a_slurm_job_is_requeued(cache: Path, tmp_path: Path) -> None:
    """USR1, as `sbatch --signal=USR1@120` sends it: Lightning's handler runs between two steps, and the state is exact."""
    tools, output = tmp_path / "bin", tmp_path / "run"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    (tools / "scontrol").chmod(0o755)
    environment = SLURM | {"PATH": f"{tools}:{os.environ['PATH']}"}
    for turn in (1, 2):
        process = start(output, cache, *RUN, "trainer.max_steps=100_000", **environment)
        await_step(process, output, 7 * turn + 7)
        os.kill(process.pid, signal.SIGUSR1)
        code, _, errors = finish(process, timeout=300)
        assert code == 128 + signal.SIGUSR1, errors
        assert (tmp_path / "requeued").read_text() == "requeue 4711\n" * turn
        assert len(list(output.glob("hpc_ckpt_*.ckpt"))) == 1
    steps = f"trainer.max_steps={step_of(output) + 3}"
    for folder in (output, tmp_path / "whole"):
        code, _, errors = finish(start(folder, cache, *RUN, steps))
        assert code == 0, errors
    last = Path("checkpoints", "last.ckpt")
    assert_same_state(tmp_path / "whole" / last, output / last)


def test_a_signal_in_the_evaluation_ends_it_at_once(cache: Path, tmp_path: Path) -> None:
    """Lightning alone ends with exit code 0, as if there were results."""
    run = (*RUN, "trainer.max_steps=3", "data.num_clips={train: 3, val: 1, test: 600}", "data.short_clip=repeat_last")
    process = start(tmp_path, cache, *run)
    await_step(process, tmp_path, 3)
    time.sleep(3)
    os.kill(process.pid, signal.SIGTERM)
    code, _, errors = finish(process)
    assert code == -signal.SIGTERM
    assert "SIGTERM: ended at once" in errors
    assert not (tmp_path / "metrics.json").exists()

"""Stopped anywhere and resumed, a run is the run that was not stopped."""

import csv
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reliability.tiny_run import EVERYTHING, assert_same_state, train_here

from tae import UserError
from tae.runtime.signals import Preempted
from tae.training.checkpointing import LastCheckpoint
from tae.training.module import AutoencoderModule

# An epoch is 3 batches, a validation every 4, a checkpoint every step: epochs end in, before and after both.
RUN = (
    "data.num_clips.train=3",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "callbacks.last.every_n_steps=1",
    "scheduler=one_cycle",
)


PHASES = ("adversary.start=2", "adversary.alone=2", "adversary.ramp=2")
DECODER = ("trainable=decoder", "loss.kl.weight=0", "loss.opl.weight=0", "loss.spectrum.weight=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def whole(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """last.ckpt of the run that nothing stops."""
    output = tmp_path_factory.mktemp("whole")
    train_here(output, cache, *RUN)
    return output / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("accumulate", "trained"),
    [pytest.param(1, DECODER, marks=pytest.mark.slow, id="decoder"), pytest.param(2, (), id="all")],
)
def test_from_every_checkpoint_of_a_run(
    accumulate: int, trained: tuple[str, ...], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, their average, discriminators, optimizer, one-cycle schedule, position and best score, whatever the state of
    the random generators."""
    output, moments = tmp_path / "run", tmp_path / "moments"
    run = (*RUN, *EVERYTHING, *PHASES, *trained, f"trainer.accumulate_grad_batches={accumulate}")
    save = LastCheckpoint.save

    def save_and_keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step < trainer.max_steps:
            shutil.copytree(output / "checkpoints", moments / str(trainer.global_step), dirs_exist_ok=True)

    monkeypatch.setattr(LastCheckpoint, "save", save_and_keep)
    train_here(output, cache, *run)
    monkeypatch.setattr(LastCheckpoint, "save", save)
    output.rename(tmp_path / "whole")
    stops = sorted(moments.iterdir())
    assert len(stops) == 7
    for stop in stops if trained else stops[::2]:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(stop, output / "checkpoints")
        random.seed(stop.name)
        np.random.seed(int(stop.name))
        torch.manual_seed(int(stop.name))
        train_here(output, cache, *run)
        assert_same_state(tmp_path / "whole" / "checkpoints" / "last.ckpt", output / "checkpoints" / "last.ckpt")


def signal_at(call: int, number: int, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process receive a signal in the so manieth call of a method of the module."""
    original: Callable[..., Any] = getattr(AutoencoderModule, method)
    calls = 0

    def with_signal(self: AutoencoderModule, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(AutoencoderModule, method, with_signal)


@pytest.mark.parametrize(
    ("method", "call", "number", "stopped_at", "saved"),
    [
        ("training_step", 2, signal.SIGTERM, 2, 2),
        ("training_step", 4, signal.SIGUSR1, 4, 4),  # a validation is due after this step: it comes first when going on
        ("validation_step", 1, signal.SIGTERM, 4, 4),
        ("validation_step", 3, signal.SIGTERM, 8, 4),  # the last validation: the run ends with it, so it is not put off
    ],
)
def test_a_signal_ends_the_run_between_two_steps(
    method: str,
    call: int,
    number: int,
    stopped_at: int,
    saved: int,
    whole: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [*RUN, "callbacks.last.every_n_steps=100"]
    with monkeypatch.context() as patch:
        signal_at(call, number, method, patch)
        with pytest.raises(Preempted) as caught:
            train_here(tmp_path, cache, *run)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL
    message = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: stopped after step {stopped_at}" in message
    assert f"last.ckpt holds step {saved}" in message
    assert not (tmp_path / "metrics.json").exists()
    train_here(tmp_path, cache, *run)
    assert_same_state(whole, tmp_path / "checkpoints" / "last.ckpt")
    assert validations(tmp_path) == [3, 7]  # as in a run that nothing stops: each once, none left out


def validations(output: Path) -> list[int]:
    """The steps, counted from 0, whose validation was logged, over all lives of a run."""
    rows: list[dict[str, str]] = []
    for file in output.glob("csv/*/metrics.csv"):
        with file.open() as lines:
            rows += csv.DictReader(lines)
    return sorted(int(row["step"]) for row in rows if row.get("val/psnr"))


def test_a_finished_run_is_only_evaluated(whole: Path, cache: Path, tmp_path: Path) -> None:
    """A signal in the evaluation ends it at once; resume=auto makes it up."""
    output = whole.parents[1]
    (output / "metrics.json").unlink()
    before = whole.read_bytes()
    assert train_here(output, cache, *RUN)["num_clips"] == 1
    assert (output / "metrics.json").exists()
    assert whole.read_bytes() == before


def test_another_layout_is_refused_in_one_message(whole: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"data\.num_workers was 1 and is 2"):
        train_here(whole.parents[1], cache, *RUN, "data.num_workers=2")

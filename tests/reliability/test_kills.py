"""A training run is killed at random moments and goes on with resume=auto, over and over; nothing of it may show.

TAE_KILLS=26 TAE_KILL_SEED=0 python -m pytest -m slow -s tests/reliability/test_kills.py
"""

import itertools
import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from reliability.tiny_run import EPOCH, EVERYTHING, assert_same_state, finish, kill_group, start

from tae.model.checkpoint_file import read_checkpoint

KILLS = int(os.environ.get("TAE_KILLS", "26"))
SEED = int(os.environ.get("TAE_KILL_SEED", "0"))
# A checkpoint at every third step, a validation at every tenth batch, an epoch of 14: all coincidences come up.
RUN = ("callbacks.last.every_n_steps=3", "trainer.val_check_interval=10", "scheduler=one_cycle")
STEPS_FOR_EACH_KILL = 13  # more than a life lasts, so that the run does not end before its last kill


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("accumulate", "settings"), [(1, ()), (2, EVERYTHING)], ids=["plain", "everything"])
def test_killed_and_resumed_ends_in_the_same_bits(accumulate: int, settings: tuple[str, ...], tmp_path: Path) -> None:
    """Half of the kills hit while a checkpoint is being written: its temporary file is there."""
    rng = random.Random(f"{SEED}-{accumulate}")
    kills = -(-KILLS // 2)
    steps = STEPS_FOR_EACH_KILL * kills
    run = (*RUN, *settings, f"trainer.max_steps={steps}", f"trainer.accumulate_grad_batches={accumulate}")
    if settings:  # a quarter of the steps for each phase of the adversary
        run += tuple(f"adversary.{phase}={steps // 4}" for phase in ("start", "alone", "ramp"))
    code, _, errors = finish(start(tmp_path / "whole", tmp_path / "cache", *run))
    assert code == 0, errors

    counts: Counter[str] = Counter()
    folder = tmp_path / "killed" / "checkpoints"
    epochs = []
    cut = b"nothing"
    for kill in range(kills):
        process = start(tmp_path / "killed", tmp_path / "cache", *run)
        await_moment(process, folder, rng, in_writing=kill % 2 == 0)
        kill_group(process)
        counts["while writing" if kill % 2 == 0 else "elsewhere"] += 1
        counts["left half a file"] += any(folder.glob(".*.tmp"))
        last = folder / "last.ckpt"
        if last.exists() and last.read_bytes() != cut:  # whenever it is the run's own it is whole
            epochs.append(read_checkpoint(last)["global_step"] * accumulate // EPOCH)
        if kill % 5 == 4 and (folder / "best.ckpt").exists():  # what a failing disk adds to it
            cut = last.read_bytes()[: rng.randrange(20_000)]
            last.write_bytes(cut)
            counts["last.ckpt cut off as well"] += 1
    counts["in the epoch of the kill before"] = sum(a == b for a, b in itertools.pairwise(epochs))
    code, _, errors = finish(start(tmp_path / "killed", tmp_path / "cache", *run))
    assert code == 0, errors
    print(f"\naccumulate_grad_batches={accumulate}: {kills} kills survived: {dict(counts)}")
    assert not list(tmp_path.rglob(".*.tmp"))
    assert_same_state(tmp_path / "whole" / "checkpoints" / "last.ckpt", folder / "last.ckpt")


def await_moment(process: subprocess.Popen[str], folder: Path, rng: random.Random, in_writing: bool) -> None:
    """Return at the chosen moment of this life: in the n-th writing of a checkpoint, or some time after it, or at the start.

    The steps take milliseconds, so the folder is looked at without a pause.
    """
    if not in_writing and rng.random() < 0.2:
        time.sleep(rng.uniform(0, 10))
        return
    seen: set[str] = set()
    wanted = rng.randint(1, 3)
    writings = 0
    while process.poll() is None:
        partial = {file.name for file in folder.glob(".*.tmp")} if folder.exists() else set()
        mine = {name for name in partial if name.endswith(f".{process.pid}.tmp")}  # others are of the life before
        writings += bool(mine - seen)
        seen = mine
        if writings == wanted:
            time.sleep(0 if in_writing else rng.uniform(0.01, 0.2))
            return
    raise AssertionError(f"the run ended with {process.returncode} before it was killed: {process.communicate()[1]}")

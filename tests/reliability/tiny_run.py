"""The smallest real training run: what is killed and resumed to see whether anything of it shows in the weights."""

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from tae.training.run import train

ROOT = Path(__file__).parents[2]
EPOCH = 14  # batches
SETTINGS = (
    "experiment=demo",
    "init_from=null",
    "model.base_channels=4",
    "model.channel_multipliers=[1, 1, 1, 2]",
    "data.num_clips={train: 14, val: 2, test: 1}",
    "data.clip_frames=4",
    "data.clip_size=32",
    "data.num_frames=2",
    "data.resolution=16",
    "data.batch_size=1",
    "data.num_workers=1",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "callbacks.progress.refresh_rate=0",
    "callbacks.videos.num_clips=1",
    "validate_first=false",
    "optimizer.lr=1e-3",
    "resume=auto",
)

# All that the recipes add; of the adversary's phases the tests choose the steps.
EVERYTHING = (
    *(
        "ema.decay=0.9",
        "adversary=patch",
        "adversary.frame_channels=4",
        "adversary.clip_channels=4",
        "adversary.layers=2",
    ),
    *("adversary.r1=1", "adversary.lecam=1e-3"),
    *("loss.equivariance.weight=0.5", "loss.equivariance.scales=[0.5, 1]", "loss.spectrum.weight=0.01"),
    *("loss.wavelet.weight=1", "loss.temporal.weight=1", "loss.reconstruction.learned_scale=true"),
    *("model.latent_noise=0.2", "model.latent_mask=0.2", "model.channel_dropout=[4, 8, 16]"),
)


def start(output: Path, cache: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """`python train.py` of the tiny run."""
    return start_train(*SETTINGS, f"data.cache_dir={cache}", f"output_dir={output}", *overrides, **environment)


def start_train(*overrides: str, **environment: str) -> subprocess.Popen[str]:
    """`python train.py` as a process group of its own, one thread in each process."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.Popen(
        [sys.executable, "train.py", *overrides],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 1200) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a run and its workers, in one moment."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def assert_same_state(one: Path, other: Path, apart: Collection[str] = ()) -> None:
    """Weights, optimizer, schedule, position in the data and progress of two checkpoints are equal to the last bit."""
    states = [torch.load(path, weights_only=True) for path in (one, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "between_steps"):
        assert equal(states[0][part], states[1][part]), f"{part} differs"
    for part in {"raw_weights", "adversary"} - set(apart):
        assert (part in states[0]) == (part in states[1]), f"{part} is in one only"
        assert equal(states[0].get(part), states[1].get(part)), f"{part} differs"
    positions, best = ([state["loops"]["fit_loop"]["state_dict"] for state in states], [score(s) for s in states])
    assert equal(positions[0], positions[1]), f"the position in the data differs: {positions}"
    assert equal(best[0], best[1]), f"the best validation differs: {best}"


def score(state: dict[str, Any]) -> Any:
    return [
        entry["best_model_score"] for name, entry in state["callbacks"].items() if name.startswith("ModelCheckpoint")
    ]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def train_here(output: Path, cache: Path, *overrides: str) -> dict[str, Any]:
    """The tiny run in this process, which decodes too."""
    settings = [*SETTINGS, f"data.cache_dir={cache}", f"output_dir={output}", "data.num_workers=0", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return train(compose("train", overrides=settings))

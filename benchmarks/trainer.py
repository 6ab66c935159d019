"""What the Trainer costs: steps as train.py takes them, beside the same steps in a bare loop.

    python -m benchmarks.trainer --device cuda
    python -m benchmarks.trainer --device cpu --overrides experiment=demo data.num_frames=8

Both take batches from the host's memory. Nobody waits for the device between the first timed step and the last one.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from benchmarks.common import RESULTS, publish, spread, synchronize
from benchmarks.step import random_vgg16
from data.batch import Batch
from tae.evaluation.run import build_metrics
from tae.losses.step import training_step
from tae.planning import planner as plan
from tae.runtime.cli import CONFIG_FOLDER, chooses
from tae.runtime.config import plain
from tae.train import GROUPS
from tae.training.module import AutoencoderModule

CALLBACKS = ("step_timer", "learning_rate", "progress")  # not those that write checkpoints and videos


class Clock(Callback):
    """Wall time of all steps after the first ones, the device's work included."""

    def __init__(self, device: str, warmup: int, steps: int) -> None:
        self.device = device
        self.warmup = warmup
        self.steps = steps
        self.start = self.seconds = 0.0

    def tick(self, done: int) -> None:
        if done in (self.warmup, self.warmup + self.steps):
            synchronize(self.device)
            now = time.perf_counter()
            self.start, self.seconds = now, (now - self.start) / self.steps

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        self.tick(trainer.global_step)


def configure(overrides: list[str], arguments: argparse.Namespace, folder: Path) -> DictConfig:
    accelerator = "gpu" if arguments.device == "cuda" else "cpu"
    fixed = [] if chooses(overrides, GROUPS) else ["experiment=demo"]
    fixed += [f"output_dir={folder}", f"trainer.accelerator={accelerator}", "init_from=null", "model.image_vae=null"]
    fixed += [f"trainer.max_steps={arguments.warmup + arguments.steps}", "trainer.val_check_interval=null"]
    fixed += [f"loss.perceptual.weights_path={random_vgg16(folder)}"]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=[*overrides, *fixed])


def batches(cfg: DictConfig, device: str) -> Iterator[Batch]:
    """The same batch over and over, page-locked where there is a GPU, as the data loader gives it."""
    count, frames, side = cfg.data.batch_size, cfg.data.num_frames, cfg.data.resolution
    clips = torch.randint(0, 256, (count, frames, side, side, 3), dtype=torch.uint8)
    clips = clips.pin_memory() if device == "cuda" else clips
    return itertools.repeat({"frames": clips, "keys": ["clip"] * count, "fps": [25.0] * count})


def bare(cfg: DictConfig, clock: Clock) -> None:
    model, loss = instantiate(cfg.model).to(clock.device), instantiate(cfg.loss)
    optimizer = instantiate(cfg.optimizer)(model.parameters())
    dtype = plan.AUTOCAST[cfg.trainer.precision]
    precision = torch.autocast(clock.device, dtype, enabled=dtype is not None)
    for done, batch in enumerate(itertools.islice(batches(cfg, clock.device), clock.warmup + clock.steps), 1):
        training_step(model, loss, optimizer, batch["frames"].to(clock.device, non_blocking=True), precision)
        clock.tick(done)


def trainer(cfg: DictConfig, clock: Clock) -> None:
    module = AutoencoderModule(
        instantiate(cfg.model), instantiate(cfg.loss), instantiate(cfg.optimizer), instantiate(cfg.scheduler),
        build_metrics(cfg), cfg.seed, plain(cfg), cfg.output_dir,
    )  # fmt: skip
    callbacks = [instantiate(cfg.callbacks[name]) for name in CALLBACKS]
    loop = instantiate(
        cfg.trainer,
        logger=list(instantiate(cfg.logger).values()),
        callbacks=[*callbacks, clock],
        enable_checkpointing=False,
    )
    loop.fit(module, batches(cfg, clock.device))


WAYS = {"bare": bare, "trainer": trainer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--overrides", nargs="*", default=["experiment=ucf101"], help="of conf/train.yaml")
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way, run in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                clock = Clock(arguments.device, arguments.warmup, arguments.steps)
                run(configure(arguments.overrides, arguments, Path(folder)), clock)
                found[way].append(clock.seconds)
    base = spread(found["bare"])["median"]
    rows = []
    for way, times in found.items():
        at = spread(times)
        rows.append({"way": way, "s/step": at["median"], "p25": at["p25"], "p75": at["p75"]})
        rows[-1]["of the bare loop"] = at["median"] / base
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("trainer", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

"""What each optional term of the loss and each option of the training costs: a step with it, over one without.

    python -m benchmarks.terms
    python -m benchmarks.terms --model sd35 --size 32 256 256 --planned-for cuda --repeats 0

Memory and arithmetic are the planner's, of a step of the largest kind that a row has. Times are processor seconds of real
steps on a CPU, taken in rounds over all rows: the mean, since not all steps of a row are alike; `--repeats 0` leaves them
out. LPIPS is left out everywhere; beside it every share is smaller.
"""

import argparse
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from benchmarks.common import RESULTS, publish
from benchmarks.metrics import cost
from tae.losses.step import training_step
from tae.model.average import WeightAverage
from tae.planning.planner import DEVICES, build_losses, make_planner
from tae.runtime.cli import CONFIG_FOLDER

PLAIN = "none"
ROWS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "learned scale": ("loss.reconstruction.learned_scale=true",),
    "wavelet": ("loss.wavelet.weight=1",),
    "temporal": ("loss.temporal.weight=1",),
    "local correlation": ("loss.local_correlation.weight=1",),
    "spectrum": ("loss.spectrum.weight=0.01",),
    "equivariance, replace at 0.5": ("loss.equivariance.weight=0.5",),
    "equivariance, extra": ("loss.equivariance.weight=0.25", "loss.equivariance.mode=extra"),
    "latent noise": ("model.latent_noise=0.2",),
    "latent mask": ("model.latent_mask=0.2",),
    "channel dropout": ("model.channel_dropout=[4,8,16]",),
    "moving average": ("ema.decay=0.999",),
    "only the decoder": ("trainable=decoder", "loss.kl.weight=0", "loss.opl.weight=0"),
    "adversary": ("adversary=patch", "adversary.alone=0", "adversary.ramp=0"),
}


def configure(model: str, device: str, overrides: tuple[str, ...]) -> DictConfig:
    common = (f"model={model}", f"device={device}", "model.image_vae=null", "loss.perceptual.weight=0")
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("plan", overrides=[*common, *overrides])


def plan(cfg: DictConfig, shape: tuple[int, int, int, int]) -> dict[str, float]:
    """Peak memory on the device and arithmetic of a step."""
    planner, loss = make_planner(cfg), build_losses(cfg.loss)["without LPIPS"]
    costs = {
        device: replace(planner, device=device).step(shape, loss, with_adversary=cfg.adversary is not None)
        for device in {"cpu", planner.device}  # the GPU's kernels do not count what they compute
    }
    return {"planned peak GB": costs[planner.device].peak_bytes / 1e9, "TFLOP": costs["cpu"].flops / 1e12}


class Step:
    """A training step of one row, on a fixed clip."""

    def __init__(self, cfg: DictConfig, shape: tuple[int, int, int, int]) -> None:
        torch.manual_seed(0)
        self.frames = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
        self.model = instantiate(cfg.model)
        self.loss = instantiate(cfg.loss)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = instantiate(cfg.optimizer)([*trained, *self.loss.parameters])
        self.average = None if cfg.ema.decay is None else WeightAverage(self.model, cfg.ema.decay)
        self.adversary = None if cfg.adversary is None else instantiate(cfg.adversary)
        if self.adversary is not None:
            self.adversary.prepare(torch.device("cpu"), scaled=False)
        self.number = 0

    def __call__(self) -> None:
        torch.manual_seed(self.number)  # the draws of all rows are of the same numbers
        extras = {"average": self.average, "adversary": self.adversary, "step": self.number}
        training_step(self.model, self.loss, self.optimizer, self.frames, nullcontext(), **extras)
        self.number += 1


def run(arguments: argparse.Namespace, rows_of: Mapping[str, tuple[str, ...]] = ROWS) -> list[dict[str, Any]]:
    """One row each, with its figures as shares of the first."""
    configs = {name: configure(arguments.model, arguments.planned_for, rows_of[name]) for name in rows_of}
    shape = (1, *arguments.size)
    found: dict[str, dict[str, float]] = {}
    for name, cfg in configs.items():
        found[name] = plan(cfg, shape)
        print(name, found[name], flush=True)
    if arguments.repeats:
        steps = {name: Step(cfg, shape) for name, cfg in configs.items()}
        rounds = [
            {name: cost(step, "cpu") for name, step in steps.items()}
            for _ in range(arguments.warmup + arguments.repeats)
        ]
        for name, figures in found.items():
            figures["s/step"] = mean(of_round[name] for of_round in rounds[arguments.warmup :])
    plain = found[PLAIN]
    shares = {"memory": "planned peak GB", "arithmetic": "TFLOP", "time": "s/step"}
    return [
        {"with": name, **figures} | {share: figures[of] / plain[of] for share, of in shares.items() if of in plain}
        for name, figures in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, nargs=3, default=(8, 64, 64), metavar=("T", "H", "W"))
    parser.add_argument("--planned-for", choices=DEVICES, default="cpu")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=8, help="0: no times")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("terms", "cpu", settings, run(arguments), arguments.output)


if __name__ == "__main__":
    main()

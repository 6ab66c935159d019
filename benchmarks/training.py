"""Losses of whole training runs side by side: what makes a step faster must not change what is learnt.

    python -m benchmarks.training --shards 'datasets/ucf101/train/shard-*.tar' --device cpu --dtype fp32 --model tiny
    python -m benchmarks.training --shards 'datasets/ucf101/train/shard-*.tar' --variants naive conv3d shipped compiled

Every variant starts from the same weights (tiny's are trained) and gets the same clips in the same order with the same
noise. Runs drift apart all the same: AdamW divides a gradient by its own size, so entries that are nothing but rounding move
the weights as far as any other. `conv3d`, the same plain PyTorch written differently, shows by how much. The command fails
where a loss, or the mean of all, is further from the first variant's than `BOUNDS`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DTYPES, MODELS, RESULTS, publish
from benchmarks.naive import NaiveAutoencoder
from benchmarks.step import SEED, VARIANTS, Step, build_loss, state_dict
from data.datamodule import ClipDataModule
from tae import TemporalAutoencoder
from tae.model.bundled import BUNDLED
from tae.model.frame_conversion import frames_to_clip

# Relative differences from the first variant over 20 steps: of the loss of a step, of the mean of all.
BOUNDS = {"fp32": (1e-3, 1e-4), "bf16": (5e-2, 1e-2), "fp16": (5e-2, 1e-2)}
DIFFERENCE = "rel. difference"
SHOWN = 10  # rows of the table, each with the largest difference since the one before


def batches(arguments: argparse.Namespace) -> Iterator[Tensor]:
    """Endless training batches (b, 3, t, h, w) in [-1, 1], in the order of the seed."""
    module = ClipDataModule(
        {"train": arguments.shards}, arguments.num_frames, frame_stride=1, resolution=arguments.resolution,
        batch_size=arguments.batch, num_workers=0, short_clip="skip", max_skipped=0.0, shuffle_buffer=64, seed=SEED,
        output_dir=arguments.output,
    )  # fmt: skip
    module.setup("fit")
    loader = module.train_dataloader()
    while True:
        for batch in loader:
            yield frames_to_clip(batch["frames"])


def make_steps(arguments: argparse.Namespace) -> dict[str, Step]:
    """The variants, ready to be given clips."""
    torch.manual_seed(SEED)  # LPIPS' weights are random
    architecture, loss, steps = MODELS[arguments.model], build_loss(arguments.lpips), {}
    weights = state_dict(architecture)
    if arguments.model in BUNDLED:
        weights = TemporalAutoencoder.from_pretrained(arguments.model).state_dict()
    for name in arguments.variants:
        model = VARIANTS[name](architecture)
        model.load_state_dict(weights)
        steps[name] = Step(model.to(arguments.device), loss, torch.empty(0), DTYPES[arguments.dtype])
        for group in steps[name].optimizer.param_groups:
            group["lr"] = arguments.lr
    return steps


def train(steps: dict[str, Step], arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The losses of each step, by variant."""
    found: list[dict[str, float]] = []
    for number, batch in zip(range(arguments.steps), batches(arguments), strict=False):
        clip, losses = batch.to(arguments.device), {}
        for name, step in steps.items():
            step.clip = clip.contiguous() if isinstance(step.model, NaiveAutoencoder) else clip
            torch.manual_seed(number)
            losses[name] = step().item()
        found.append(losses)
    return found


def summarise(found: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Some of the steps, each with the largest relative difference from the first variant since the one before; the mean."""
    every = max(len(found) // SHOWN, 1)
    parts = [found[start : start + every] for start in range(0, len(found), every)]
    rows = [row(f"{start * every + len(part)}", part[-1], part) for start, part in enumerate(parts)]
    means = {name: fmean(losses[name] for losses in found) for name in found[0]}
    return [*rows, row("mean", means, [means])]


def row(step: str, shown: dict[str, float], part: list[dict[str, float]]) -> dict[str, Any]:
    first, *others = shown
    worst = {name: max(abs(losses[name] / losses[first] - 1) for losses in part) for name in others}
    losses = {f"loss, {name}": value for name, value in shown.items()}
    return {"step": step, **losses, **{f"{name}, {DIFFERENCE}": difference for name, difference in worst.items()}}


def check(rows: list[dict[str, Any]], dtype: str) -> None:
    """Fail where a run has left the first variant's."""
    of_a_step, of_the_mean = BOUNDS[dtype]
    for found in rows:
        bound = of_the_mean if found["step"] == "mean" else of_a_step
        for name, value in found.items():
            if name.endswith(DIFFERENCE) and not value <= bound:
                raise SystemExit(f"{name}: {value:.2g} in row {found['step']}; {bound} is allowed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", required=True, help="patterns, as for data.shards.*")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of autocast; fp32 is without")
    parser.add_argument("--model", choices=tuple(MODELS), default="sd35")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=["naive", "conv3d", "shipped"])
    parser.add_argument("--lpips", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = summarise(train(make_steps(arguments), arguments))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "shards")}
    publish("training", arguments.device, settings, rows, arguments.output)
    check(rows, arguments.dtype)


if __name__ == "__main__":
    main()

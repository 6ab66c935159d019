"""What an adversary does to a decoder, step by step: held-out error from the moment it begins, and quality at the end.

    python -m benchmarks.adversary --train 'datasets/ucf101/train/shard-*.tar' --held-out 'datasets/ucf101/test/shard-*.tar'

Only the decoder of the bundled weights is trained, with L1 and LPIPS (`python -m tae.weights get=vgg`). All runs of a seed
see the same clips, and are one run until their adversary is heard, in the same step of all: `without` one, with one that was
trained alone first and is then ramped (`prepared`), and with one that has its full weight untrained (`untrained`), each at
each of `--weights`. What is left of conf/adversary/patch.yaml is as it is there, but for smaller networks that learn faster
(`--channels`, `--lr-adversary`).

The command resumes what it was interrupted in, from `--state`, and ends in the same numbers.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.common import DTYPES, RESULTS, publish
from data.datamodule import ClipDataModule
from tae import TemporalAutoencoder
from tae.adversarial.adversary import PatchAdversary
from tae.losses import Objective, Perceptual, Reconstruction
from tae.losses.step import compute_loss, update
from tae.metrics.frame import psnr, ssim
from tae.metrics.temporal import flicker
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.trainable import freeze
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import replacing

UNCHANGED, WITHOUT = "unchanged", "without"
SHOCK = 200  # steps after an adversary is heard in which the error may rise
SHOWN = 5  # clips of a picture


class Run:
    """A decoder in training, or a reference to the run without an adversary, which it still equals."""

    def __init__(self, adversary: PatchAdversary | None) -> None:
        self.adversary = adversary
        self.model: TemporalAutoencoder | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def begin(self, model: TemporalAutoencoder, lr: float, other: "Run | None" = None) -> None:
        """Train from here, as `other` would go on."""
        self.model = copy.deepcopy(model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        if other is not None and other.optimizer is not None:
            self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))

    def state_dict(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "adversary": self.adversary}
        return {name: part and part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any], model: TemporalAutoencoder, lr: float) -> None:
        if state["model"] is not None:
            self.begin(model, lr)
            assert self.model is not None
            assert self.optimizer is not None
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])


def make_adversary(arguments: argparse.Namespace, seed: int, **changes: Any) -> PatchAdversary:
    """The shipped settings, with phases of a short run and networks of its size."""
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        settings = compose("train", overrides=["adversary=patch", "output_dir=unused"]).adversary
    sizes = {"frame_channels": arguments.channels, "clip_channels": arguments.channels}
    torch.manual_seed(seed)
    adversary = instantiate(settings, optimizer={"lr": arguments.lr_adversary}, **sizes, **changes)
    adversary.prepare(torch.device("cpu"), scaled=False)
    adversary.claimed = True
    return adversary


def make_runs(arguments: argparse.Namespace, seed: int) -> dict[str, Run]:
    phases = {
        "prepared": {"start": arguments.start, "alone": arguments.alone, "ramp": arguments.ramp},
        "untrained": {"start": arguments.start + arguments.alone, "alone": 0, "ramp": 0},
    }
    runs = {WITHOUT: Run(None)}
    for weight in arguments.weights:
        for name in arguments.kinds:
            runs[f"{name}, {weight}"] = Run(make_adversary(arguments, seed, weight=weight, **phases[name]))
    return runs


def data_module(arguments: argparse.Namespace, seed: int) -> ClipDataModule:
    module = ClipDataModule(
        {"train": arguments.train, "test": arguments.held_out}, arguments.num_frames, frame_stride=1,
        resolution=arguments.resolution, batch_size=1, num_workers=0, short_clip="skip", max_skipped=0.0,
        shuffle_buffer=64, seed=seed, output_dir=arguments.state,
    )  # fmt: skip
    module.setup("fit")
    return module


def batches(module: ClipDataModule) -> Iterator[Tensor]:
    loader = module.train_dataloader()
    while True:
        for batch in loader:
            yield frames_to_clip(batch["frames"])


def train(arguments: argparse.Namespace, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Tensor]]:
    """Rows of held-out L1 along the way and of quality at the end, and columns of pictures."""
    module, runs = data_module(arguments, seed), make_runs(arguments, seed)
    perceptual = Perceptual(weight=1.0, net="vgg", weights_path=None)
    objective = Objective(reconstruction=Reconstruction(1.0), perceptual=perceptual)
    model = TemporalAutoencoder.from_pretrained("tiny").train()
    freeze(model, "decoder")
    held_out = [frames_to_clip(batch["frames"]) for batch in module.eval_dataloader("test")]
    with torch.no_grad():  # of an encoder that is frozen
        pairs = [(clip, model.encode(clip).mode()) for clip in held_out]
    runs[WITHOUT].begin(model, arguments.lr)
    curve: list[dict[str, Any]] = []
    begin, state_file = 0, arguments.state / f"seed_{seed}.pt"
    if state_file.exists():
        begin, curve, states = torch.load(state_file, weights_only=True)
        for name, run in runs.items():
            run.load_state_dict(states[name], model, arguments.lr)
    for step, clip in zip(range(begin, arguments.steps + 1), islice(batches(module), begin, None), strict=False):
        if step % arguments.every == 0 and (not curve or curve[-1]["step"] < step):
            with precision(arguments.dtype):
                found = {name: held_out_l1(run.model or baseline(runs), pairs) for name, run in runs.items()}
            curve.append({"seed": seed, "step": step} | found)
            print(curve[-1], flush=True)
            states = {name: run.state_dict() for name, run in runs.items()}
            with replacing(state_file) as partial:
                torch.save((step, curve, states), partial)
        if step < arguments.steps:
            take_step(runs, objective, clip, step, arguments)
    models = {UNCHANGED: model} | {name: run.model or baseline(runs) for name, run in runs.items()}
    decoded = {name: decode(each, pairs) for name, each in models.items()}
    rows = [{"seed": seed, "run": name} | quality(held_out, clips, perceptual) for name, clips in decoded.items()]
    shown = [torch.cat([clip[0, :, 0] for clip in clips[:SHOWN]], 1) for clips in (held_out, *decoded.values())]
    return curve, rows, shown


def precision(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "fp32")


def baseline(runs: dict[str, Run]) -> TemporalAutoencoder:
    model = runs[WITHOUT].model
    assert model is not None
    return model


def take_step(
    runs: dict[str, Run], objective: Objective, clip: Tensor, step: int, arguments: argparse.Namespace
) -> None:
    """One step of every run; an adversary that is not heard yet is trained on what the run without one decodes."""
    for run in runs.values():
        if run.model is None and run.adversary is not None and run.adversary.factor(step) > 0:
            run.begin(baseline(runs), arguments.lr, other=runs[WITHOUT])
    unheard = [run.adversary for run in runs.values() if run.model is None and run.adversary is not None]
    for run in runs.values():
        if run.model is None or run.optimizer is None:
            continue
        torch.manual_seed(step)  # of the posterior's noise
        with precision(arguments.dtype):
            found = compute_loss(run.model, objective, clip, step, run.adversary)
        update(run.model, run.optimizer, found.total)
        if run.adversary is not None:
            run.adversary.update()
            continue
        for adversary in unheard:
            if step >= adversary.start:
                with precision(arguments.dtype):
                    adversary.train_discriminators(clip, found.output.reconstruction.detach())
                adversary.update()


@torch.no_grad()
def held_out_l1(model: TemporalAutoencoder, pairs: list[tuple[Tensor, Tensor]]) -> float:
    errors = [(model.decode(latents, clip.shape[2]) - clip).abs().mean().item() for clip, latents in pairs]
    return sum(errors) / len(errors)


@torch.no_grad()
def decode(model: TemporalAutoencoder, pairs: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Clips in [-1, 1], rounded to 8 bits."""
    decoded = [model.decode(latents, clip.shape[2]) for clip, latents in pairs]
    return [frames_to_clip(clip_to_frames(clip)) for clip in decoded]


def quality(originals: Sequence[Tensor], decoded: Sequence[Tensor], perceptual: Perceptual) -> dict[str, float]:
    """L1, PSNR, SSIM, LPIPS and flicker, the mean over clips."""
    found: dict[str, list[float]] = {"L1": [], "dB": [], "SSIM": [], "LPIPS": [], "flicker": []}
    for clip, other in zip(originals, decoded, strict=True):
        frames, others = clip_to_frames(clip)[0], clip_to_frames(other)[0]
        found["L1"].append((other - clip).abs().mean().item())
        found["dB"].append(psnr(frames, others).mean().item())
        found["SSIM"].append(ssim(frames, others).mean().item())
        found["LPIPS"].append(perceptual.per_frame(clip, other).mean().item())
        found["flicker"].append(flicker(frames, others))
    return {"clips": len(originals)} | {name: mean(values) for name, values in found.items()}


def shock(curve: Sequence[dict[str, Any]], begin: int, within: int) -> dict[str, float]:
    """The largest rise of the held-out L1 over the run without an adversary, in the steps after `begin`."""
    rows = [row for row in curve if begin < row["step"] <= begin + within]
    return {name: max((row[name] / row[WITHOUT] - 1 for row in rows), default=0.0) for name in adversaries(curve)}


def adversaries(curve: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in curve[0] if name not in ("seed", "step", WITHOUT)]


def draw_curves(curve: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Held-out L1 over that of the run without an adversary: the mean over seeds, and each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    steps = sorted({row["step"] for row in curve})
    for number, name in enumerate(adversaries(curve)):
        rises = {step: [100 * (row[name] / row[WITHOUT] - 1) for row in curve if row["step"] == step] for step in steps}
        axes.plot(steps, [mean(values) for values in rises.values()], color=f"C{number}", label=name)
        dots = [(step, value) for step, values in rises.items() for value in values]
        axes.plot(*zip(*dots, strict=True), ".", color=f"C{number}", markersize=4, alpha=0.5)
    heard = arguments.start + arguments.alone
    for place, text in ((arguments.start, "start"), (heard, "heard"), (heard + arguments.ramp, "ramp ends")):
        axes.axvline(place, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(text, (place, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="step", ylabel="held-out L1 over the run without, %")
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(arguments.curves, dpi=110)


def draw_frames(columns: Sequence[Tensor], titles: Sequence[str], path: Path) -> None:
    """Columns (3, n h, w) in [-1, 1], one for each run."""
    from matplotlib.figure import Figure

    height, width = columns[0].shape[1:]
    figure = Figure(figsize=(1.6 * len(columns), 1.6 * height / width + 0.25), layout="constrained")
    for axes, column, title in zip(figure.subplots(1, len(columns)), columns, titles, strict=True):
        axes.imshow((column.movedim(0, -1) + 1) / 2, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="shards, as for data.shards.train")
    parser.add_argument("--held-out", required=True, help="shards whose clips no step sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=550)
    parser.add_argument("--every", type=int, default=25, help="steps between two looks at the held-out clips")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--alone", type=int, default=150)
    parser.add_argument("--ramp", type=int, default=100)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1])
    parser.add_argument("--kinds", nargs="+", choices=("prepared", "untrained"), default=("prepared", "untrained"))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4, help="of the decoder")
    parser.add_argument("--lr-adversary", type=float, default=1e-3)
    parser.add_argument("--num-frames", type=int, default=16, help="8, a latent frame, are decoded to equal frames")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--state", type=Path, default=Path("outputs/benchmark_adversary"), help="to resume from")
    parser.add_argument("--curves", type=Path, help="where to draw held-out L1")
    parser.add_argument("--pictures", type=Path, help="where to draw frames of the first seed side by side")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    curve: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        found, qualities, columns = train(arguments, seed)
        rises = shock(found, arguments.start, arguments.alone + SHOCK)
        rows += [row | {f"L1 up in {SHOCK} steps": rises.get(row["run"])} for row in qualities]
        curve += found
        if arguments.pictures is not None and seed == arguments.seeds[0]:
            draw_frames(columns, ["original", *(row["run"] for row in qualities)], arguments.pictures)
    if arguments.curves is not None:
        draw_curves(curve, arguments)
    skipped = ("output", "state", "train", "held_out", "curves", "pictures")
    settings = {name: value for name, value in vars(arguments).items() if name not in skipped}
    publish("adversary_curve", "cpu", settings, curve, arguments.output)
    publish("adversary", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

"""What an adversary does to a decoder, step by step: held-out error from the moment it begins, and quality at the end.

    python -m benchmarks.adversary --train 'datasets/ucf101/train/shard-*.tar' --held-out 'datasets/ucf101/test/shard-*.tar'

Only the decoder of the bundled weights is trained, with L1 and LPIPS (`python -m tae.weights get=vgg`). All runs see the
same clips, and are one run until their adversary is heard: `without` one, with one that was trained alone first and then
ramped (`prepared`), and with one that has its full weight untrained (`untrained`), each at each of `--weights`. What is
left of conf/adversary/patch.yaml is as it is there, but for smaller networks that learn faster (`--channels`, `--lr`).
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.common import RESULTS, publish
from data.datamodule import ClipDataModule
from tae import TemporalAutoencoder
from tae.adversarial.adversary import PatchAdversary
from tae.losses import Objective, Perceptual, Reconstruction
from tae.losses.step import compute_loss, update
from tae.metrics.frame import psnr, ssim
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.trainable import freeze
from tae.runtime.cli import CONFIG_FOLDER

SEED = 0
WITHOUT = "without"


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


def make_adversary(arguments: argparse.Namespace, **changes: Any) -> PatchAdversary:
    """The shipped settings, with phases of a short run and networks of its size."""
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        settings = compose("train", overrides=["adversary=patch", "output_dir=unused"]).adversary
    sizes = {"frame_channels": arguments.channels, "clip_channels": arguments.channels}
    torch.manual_seed(SEED)
    adversary = instantiate(
        settings, start=arguments.start, optimizer={"lr": arguments.lr_adversary}, **sizes, **changes
    )
    adversary.prepare(torch.device("cpu"), scaled=False)
    adversary.claimed = True
    return adversary


def make_runs(arguments: argparse.Namespace) -> dict[str, Run]:
    phases = {"prepared": (arguments.alone, arguments.ramp), "untrained": (0, 0)}
    runs = {WITHOUT: Run(None)}
    for weight in arguments.weights:
        for name in arguments.kinds:
            alone, ramp = phases[name]
            runs[f"{name}, {weight}"] = Run(make_adversary(arguments, alone=alone, ramp=ramp, weight=weight))
    return runs


def data_module(arguments: argparse.Namespace) -> ClipDataModule:
    module = ClipDataModule(
        {"train": arguments.train, "test": arguments.held_out}, arguments.num_frames, frame_stride=1,
        resolution=arguments.resolution, batch_size=1, num_workers=0, short_clip="skip", max_skipped=0.0,
        shuffle_buffer=64, seed=SEED, output_dir=arguments.output,
    )  # fmt: skip
    module.setup("fit")
    return module


def batches(module: ClipDataModule) -> Iterator[Tensor]:
    loader = module.train_dataloader()
    while True:
        for batch in loader:
            yield frames_to_clip(batch["frames"])


def train(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of held-out L1 along the way, and of quality at the end."""
    module, runs = data_module(arguments), make_runs(arguments)
    perceptual = Perceptual(weight=1.0, net="vgg", weights_path=None)
    objective = Objective(reconstruction=Reconstruction(1.0), perceptual=perceptual)
    model = TemporalAutoencoder.from_pretrained("tiny").train()
    freeze(model, "decoder")
    held_out = [frames_to_clip(batch["frames"]) for batch in module.eval_dataloader("test")]
    with torch.no_grad():  # of an encoder that is frozen
        pairs = [(clip, model.encode(clip).mode()) for clip in held_out]
    runs[WITHOUT].begin(model, arguments.lr)
    curve: list[dict[str, Any]] = []
    for step, clip in zip(range(arguments.steps + 1), batches(module), strict=False):
        if step % arguments.every == 0:
            curve.append(
                {"step": step} | {name: held_out_l1(run.model or baseline(runs), pairs) for name, run in runs.items()}
            )
            print(curve[-1], flush=True)
        if step < arguments.steps:
            take_step(runs, objective, clip, step, arguments.lr)
    return curve, [
        {"run": name} | quality(run.model or baseline(runs), pairs, perceptual) for name, run in runs.items()
    ]


def baseline(runs: dict[str, Run]) -> TemporalAutoencoder:
    model = runs[WITHOUT].model
    assert model is not None
    return model


def take_step(runs: dict[str, Run], objective: Objective, clip: Tensor, step: int, lr: float) -> None:
    """One step of every run; an adversary that is not heard yet is trained on what the run without one decodes."""
    for run in runs.values():
        if run.model is None and run.adversary is not None and run.adversary.factor(step) > 0:
            run.begin(baseline(runs), lr, other=runs[WITHOUT])
    unheard = [run.adversary for run in runs.values() if run.model is None and run.adversary is not None]
    for run in runs.values():
        if run.model is None or run.optimizer is None:
            continue
        torch.manual_seed(step)  # of the posterior's noise
        found = compute_loss(run.model, objective, clip, step, run.adversary)
        update(run.model, run.optimizer, found.total)
        if run.adversary is not None:
            run.adversary.update()
            continue
        for adversary in unheard:
            if step >= adversary.start:
                adversary.train_discriminators(clip, found.output.reconstruction.detach())
                adversary.update()


@torch.no_grad()
def held_out_l1(model: TemporalAutoencoder, pairs: list[tuple[Tensor, Tensor]]) -> float:
    errors = [(model.decode(latents, clip.shape[2]) - clip).abs().mean().item() for clip, latents in pairs]
    return sum(errors) / len(errors)


@torch.no_grad()
def quality(model: TemporalAutoencoder, pairs: list[tuple[Tensor, Tensor]], perceptual: Perceptual) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of held-out clips, both sides rounded to 8 bits."""
    found: dict[str, list[float]] = {"L1": [], "dB": [], "SSIM": [], "LPIPS": []}
    for clip, latents in pairs:
        decoded = clip_to_frames(model.decode(latents, clip.shape[2]))
        frames = clip_to_frames(clip)
        found["L1"].append((frames_to_clip(decoded) - clip).abs().mean().item())
        found["dB"].append(psnr(frames[0], decoded[0]).mean().item())
        found["SSIM"].append(ssim(frames[0], decoded[0]).mean().item())
        found["LPIPS"].append(perceptual.per_frame(clip, frames_to_clip(decoded)).mean().item())
    return {name: sum(values) / len(values) for name, values in found.items()}


def shock(curve: list[dict[str, Any]], begin: int, within: int) -> dict[str, float]:
    """The largest rise of the held-out L1 over the run without an adversary, in the steps after `begin`."""
    rows = [row for row in curve if begin < row["step"] <= begin + within]
    names = [name for name in curve[0] if name not in ("step", WITHOUT)]
    return {name: max((row[name] / row[WITHOUT] - 1 for row in rows), default=0.0) for name in names}


def draw(curve: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The curves as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name in [name for name in curve[0] if name != "step"]:
        axes.plot([row["step"] for row in curve], [row[name] for row in curve], label=name)
    for place, text in ((arguments.start, "start"), (arguments.start + arguments.alone, "ramp begins")):
        axes.axvline(place, color="grey", linewidth=0.8, linestyle=":")
        axes.annotate(text, (place, 1), xycoords=("data", "axes fraction"), va="top", fontsize=8)
    axes.set(xlabel="step", ylabel="held-out L1")
    axes.legend(fontsize=8)
    figure.savefig(arguments.picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="shards, as for data.shards.train")
    parser.add_argument("--held-out", required=True, help="shards whose clips no step sees")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="steps between two looks at the held-out clips")
    parser.add_argument("--start", type=int, default=20)
    parser.add_argument("--alone", type=int, default=80)
    parser.add_argument("--ramp", type=int, default=80)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1])
    parser.add_argument("--kinds", nargs="+", choices=("prepared", "untrained"), default=("prepared", "untrained"))
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4, help="of the decoder")
    parser.add_argument("--lr-adversary", type=float, default=1e-3)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    curve, rows = train(arguments)
    rises = shock(curve, arguments.start, within=200)
    for row in rows:
        row["L1 up within 200 steps"] = rises.get(row["run"])
    if arguments.picture is not None:
        draw(curve, arguments)
    skipped = ("output", "train", "held_out", "picture")
    settings = {name: value for name, value in vars(arguments).items() if name not in skipped}
    publish("adversary_curve", "cpu", settings, curve, arguments.output)
    publish("adversary", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

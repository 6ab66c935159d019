"""What the outlier penalty does: equal trainings that differ in its weight and its r, from one base without it.

    python -m benchmarks.outlier_penalty --train 'datasets/folder/train/shard-*.tar' \\
        --test 'datasets/ucf101/test/shard-*.tar'

The base is the bundled network, trained further with L1, LPIPS and KL alone. From it every penalty of `--penalties` (r and
weight; the paper's are r 3 and weights of 1e3, 1e5 and 1e6 under a sum, here 0.005, 0.5 and 5) is trained for as many steps,
on the same clips. A penalty whose r no position exceeds has no gradient, so trainings with it are the same to the bit: the
share of positions beyond r is in the table, of the base's own latents too.

Differences are to the training without it, with their 95 % interval by bootstrap over test clips and seeds. The generator is
that of examples/flow_matching.py, trained on the latents of the training clips, scaled by channel; `velocity error` is its
mean squared error on those of the test clips (2: it knows nothing), for the first seed. `--picture` shows latents and its
samples. The command resumes from `--state`.
"""

import argparse
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.ablations import SMALL, row_of
from benchmarks.linear_codec import open_clips
from benchmarks.trainings import Training, make_parser, publish_trainings
from examples import flow_matching
from tae.evaluation.pictures import latent_picture
from tae.losses.outlier import outlier_distance
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.pretrained import load_model
from tae.runtime.files import write_text

Penalty = tuple[float, float]  # r, weight
NONE: Penalty = (3.0, 0.0)
PENALTIES = ("3:5", "1.5:0.005", "1.5:0.5", "1.5:5")
DRAWS = 32  # of noise and time, for each test clip


def penalty(text: str) -> Penalty:
    """`R:WEIGHT`."""
    r, _, weight = text.partition(":")
    return float(r), float(weight)


def base(arguments: argparse.Namespace) -> Training:
    return Training("base", 0, ("experiment=ablation/base", *SMALL, "report.latents=false", "init_from=tiny"))


def training(given: Penalty, seed: int, arguments: argparse.Namespace) -> Training:
    r, weight = given
    start = base(arguments).folder(arguments) / "checkpoints" / "last.ckpt"
    settings = (f"init_from='{start}'", f"loss.opl.r={r}", f"loss.opl.weight={weight}")
    return Training(f"r {r:g} weight {weight:g}", seed, ("experiment=ablation/base", *SMALL, *settings))


class Latents:
    """Latents of clips by one autoencoder, the posterior's mode."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.model = load_model(str(folder / "checkpoints" / "last.ckpt")).model.eval()
        self.arguments = arguments

    @torch.no_grad()
    def of(self, shards: list[str], most: int | None = None) -> Tensor:
        """(n, c, t', h', w') of the central windows of the first clips."""
        arguments = self.arguments
        data = open_clips(shards, shards, arguments.num_frames, arguments.resolution, arguments.state)
        clips = (frames_to_clip(batch["frames"]) for batch in islice(data.test_dataloader(), most))
        return torch.cat([self.model.encode(clip).mode() for clip in clips])


@torch.no_grad()
def velocity_error(generator: flow_matching.VelocityModel, latents: Tensor) -> float:
    """Mean squared error of the velocity, of the same noise and times for every generator."""
    draw = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(DRAWS):
        noise = torch.randn(latents.shape, generator=draw)
        time = torch.rand(len(latents), generator=draw)
        t = time.view(-1, 1, 1, 1, 1)
        found = generator((1 - t) * latents + t * noise, time)
        errors.append((found - (noise - latents)).square().mean().item())
    return fmean(errors)


def generator_file(folder: Path, arguments: argparse.Namespace) -> Path:
    """Where a generator of these settings is kept."""
    return folder / f"generator_{arguments.generator_steps}_{arguments.generator_clips}.json"


def generate(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A generator's error, which is read again; its samples and a clip's latents are in the .pt beside it."""
    kept = generator_file(folder, arguments)
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    encoder = Latents(folder, arguments)
    known, unseen = encoder.of(arguments.train, arguments.generator_clips), encoder.of(arguments.test)
    mean, deviation = known.mean((0, 2, 3, 4), keepdim=True), known.std((0, 2, 3, 4), keepdim=True)
    scaled = [{"latents": one} for one in (known - mean) / deviation]
    torch.manual_seed(0)
    generator = flow_matching.VelocityModel(tuple(known.shape[1:]))
    loader: DataLoader = DataLoader(scaled, batch_size=8, shuffle=True)  # type: ignore[arg-type]
    flow_matching.train(generator, loader, arguments.generator_steps)
    samples = flow_matching.generate(generator, tuple(known.shape[1:]), count=6) * deviation + mean
    with torch.no_grad():
        frames = clip_to_frames(encoder.model.decode(samples))[:, 0]
    distance = outlier_distance(unseen)
    shown = unseen[distance.amax((1, 2, 3)).argmax()]
    torch.save({"frames": frames, "latents": shown}, kept.with_suffix(".pt"))
    error = velocity_error(generator, (unseen - mean) / deviation)
    found = {"velocity error": error, "largest distance": distance.max().item()}
    found |= {f"beyond {r:g}": (distance > r).float().mean().item() for r in arguments.shown_r}
    write_text(kept, json.dumps(found))
    return found


def draw(folders: Mapping[str, Path], arguments: argparse.Namespace) -> None:
    """A row for each training: the latents of the test clip with the largest outlier, then samples of the generator."""
    figure = Figure(figsize=(13, 1.2 * len(folders)), layout="constrained")
    grid = figure.subplots(len(folders), 2, width_ratios=(17, 12), squeeze=False)
    for axes, (name, folder) in zip(grid, folders.items(), strict=True):
        kept = torch.load(generator_file(folder, arguments).with_suffix(".pt"), weights_only=True)
        axes[0].imshow(latent_picture(kept["latents"])[0], interpolation="nearest")
        axes[1].imshow(torch.cat(list(kept["frames"]), dim=1).numpy())
        axes[0].set_title(name, fontsize=8, loc="left")
        for axis in axes:
            axis.set_axis_off()
    figure.savefig(arguments.picture, dpi=110)


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """A row for the base and for each penalty; the folders of their first seeds."""
    start = base(arguments)
    start.run(arguments, arguments.base_steps)
    given = [NONE, *map(penalty, arguments.penalties)]
    runs = {one: [training(one, seed, arguments) for seed in arguments.seeds] for one in given}
    found = {one: [run.run(arguments) for run in runs[one]] for one in given}
    folders = {f"r {r:g}, weight {weight:g}": runs[r, weight][0].folder(arguments) for r, weight in given}
    rows = []
    for (r, weight), folder in zip(given, folders.values(), strict=True):
        about = {"r": None if weight == 0 else r, "weight": weight}
        rows.append(about | row_of(found[r, weight], found[NONE]) | generate(folder, arguments))
    before = dict.fromkeys(rows[0]) | {"r": "before"} | generate(start.folder(arguments), arguments)
    return [before, *rows], {"before": start.folder(arguments)} | folders


def main() -> None:
    parser = make_parser(
        __doc__, lr=1e-4, lpips="alex", looks=1, seeds=[0, 1, 2], state=Path("outputs/outlier_penalty")
    )
    parser.add_argument("--penalties", nargs="+", default=PENALTIES, metavar="R:WEIGHT")
    parser.add_argument("--shown-r", type=float, nargs="+", default=[3.0, 1.5], help="of the shares in the table")
    parser.add_argument("--base-steps", type=int, default=500)
    parser.add_argument("--generator-steps", type=int, default=400)
    parser.add_argument("--generator-clips", type=int, default=256, help="training clips that a generator learns from")
    parser.add_argument("--picture", type=Path, help="where to draw latents and samples")
    arguments = parser.parse_args()
    rows, folders = measure(arguments)
    if arguments.picture is not None:
        draw(folders, arguments)
    publish_trainings("outlier_penalty", arguments, rows)


if __name__ == "__main__":
    main()

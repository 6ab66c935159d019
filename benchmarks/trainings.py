"""Small trainings that are compared: the same clips in the same order, the real perceptual loss, each measured at its end.

They are runs of `train.py`, in folders of `--state`. What has ended is read again and what was interrupted is resumed, so
that the command may be stopped at any moment and repeated.
"""

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from benchmarks.common import RESULTS, publish
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.config import plain
from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.quiet import quiet
from tae.train import train

QUIET = (
    "logger=csv", "callbacks.videos.num_clips=0", "callbacks.progress.refresh_rate=0", "callbacks.best=null", "page.clips=0",
    "report.latents=false", "validate_first=false", "resume=auto", "data.num_workers=1", "data.read_timeout=600",
)  # fmt: skip
NOT_SETTINGS = ("train", "test", "images", "photographs", "arms", "state", "output", "plot", "picture")

# What decides a result beside the number of steps; the other groups say how a run is watched.
DECIDING = (
    "data", "model", "loss", "metrics", "optimizer", "scheduler", "adversary", "seed", "init_from", "trainable", "ema",
    "report",
)  # fmt: skip


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all comparisons have.

    Args:
        defaults: of options, in place of those here.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="patterns of shards")
    parser.add_argument("--test", nargs="+", required=True, help="patterns of shards whose clips no training sees")
    parser.add_argument(
        "--images", nargs="+", help="patterns of shards of images, which one step of four is trained on"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--looks", type=int, default=4, help="validations within so many steps")
    parser.add_argument("--lpips", choices=("alex", "vgg"), default="vgg", help="of the loss; it is measured by VGG-16")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--state", type=Path, help="where the trainings lie (default: outputs/ and the command's name)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.set_defaults(**defaults)
    return parser


@dataclass(frozen=True)
class Training:
    """One of the trainings, by what it is called, its seed, and what is particular to it."""

    name: str
    seed: int
    overrides: Sequence[str]

    def configure(self, arguments: argparse.Namespace, steps: int) -> DictConfig:
        """The run of `train.py` with so many steps; its config is resolved for the folder it has in `--state`."""
        shared = {
            "output_dir": self.folder(arguments),
            "seed": self.seed,
            "data.shards.train": quoted(arguments.train),
            "data.shards.val": quoted(arguments.test),
            "data.shards.test": quoted(arguments.test),
            "data.num_frames": arguments.num_frames,
            "data.resolution": arguments.resolution,
            "data.batch_size": arguments.batch,
            "precision": arguments.precision,
            "trainer.accelerator": arguments.device,
            "trainer.max_steps": steps,
            "trainer.val_check_interval": max(1, arguments.steps // arguments.looks),
            "callbacks.last.every_n_steps": max(1, arguments.steps // arguments.looks // 2),
            "optimizer.lr": arguments.lr,
            "loss.perceptual.net": arguments.lpips,
        }
        with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            cfg = compose(
                "train",
                overrides=[*QUIET, *(f"{key}={value}" for key, value in shared.items()), *self.overrides],
            )
        if arguments.images:
            images = {"shards": arguments.images, "num_frames": 1, "batch_size": 4 * arguments.batch, "weight": 1}
            with open_dict(cfg):
                cfg.data.sources = {"video": {"weight": 3}, "images": images}
        return cfg

    def folder(self, arguments: argparse.Namespace) -> Path:
        """Where the run lies."""
        return Path(arguments.state) / f"{self.name.replace(', ', '_').replace(' ', '_')}_seed{self.seed}"

    def run(self, arguments: argparse.Namespace, steps: int | None = None) -> dict[str, Any]:
        """What metrics.json holds after so many steps (None: `--steps`); less than before is read, more is trained.

        Raises:
            UserError: what is to be read was trained with other settings.
        """
        steps = arguments.steps if steps is None else steps
        kept = self.folder(arguments) / f"after_{steps}_steps.json"
        cfg = self.configure(arguments, steps)
        if kept.exists():
            document = json.loads(kept.read_text(encoding="utf-8"))
            check_same(document["config"], plain(cfg), kept)
            return document
        quiet()
        document = train(cfg)
        with (self.folder(arguments) / "per_clip.csv").open(encoding="utf-8", newline="") as file:
            document["per_clip"] = list(csv.DictReader(file))
        write_text(kept, json.dumps(document))
        return document

    def curve(self, arguments: argparse.Namespace, metric: str) -> list[tuple[int, float]]:
        """(step, value) of each validation, in order; those that were repeated after an interruption once."""
        found: dict[int, float] = {}
        for path in sorted(self.folder(arguments).glob("csv/version_*/metrics.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(f"val/{metric}"):
                        found[int(row["step"])] = float(row[f"val/{metric}"])
        return sorted(found.items())


def check_same(was: Mapping[str, Any], now: Mapping[str, Any], kept: Path) -> None:
    """Refuse a result that these settings would not give.

    Raises:
        UserError: a group of settings differs.
    """
    before, after = ({name: without_folders(config.get(name)) for name in DECIDING} for config in (was, now))
    if others := [name for name in DECIDING if before[name] != after[name]]:
        raise UserError(
            f"{kept} was made with other settings of {', '.join(others)}: repeat the command as it was, or give another "
            "--state."
        )


def without_folders(group: Any) -> Any:
    """Settings without where the run lies."""
    return (
        {name: value for name, value in group.items() if name != "output_dir"} if isinstance(group, Mapping) else group
    )


def quoted(patterns: Sequence[str]) -> str:
    """A list for a line of Hydra's."""
    return "[" + ",".join(f"'{pattern}'" for pattern in patterns) + "]"


def values_of(document: Mapping[str, Any], metric: str) -> np.ndarray:
    """A metric of each test clip, in the order of the clips."""
    return np.array([float(row[metric]) for row in document["per_clip"]])


def spread_over_seeds(values: Sequence[float]) -> str:
    """Mean of runs that differ in their seed, and their standard deviation where there are several."""
    return f"{fmean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def difference(documents: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Mean difference to other trainings of the same seeds, with its 95 % interval by bootstrap over test clips and seeds.

    Each clip is compared with itself, and each training with the one that drew the same clips in the same order.
    """
    pairs = zip(documents, others, strict=True)
    table = np.stack([values_of(ours, metric) - values_of(theirs, metric) for ours, theirs in pairs])  # (seeds, clips)
    draw = np.random.default_rng(0)
    seeds, clips = (draw.integers(size, size=(2_000, size)) for size in table.shape)
    means = table[seeds[:, :, None], clips[:, None, :]].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{table.mean():+.3g} ({low:+.3g} to {high:+.3g})"


def publish_trainings(theme: str, arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The table with the settings that all rows share."""
    settings = {name: value for name, value in vars(arguments).items() if name not in NOT_SETTINGS}
    publish(theme, arguments.device, settings, rows, arguments.output)

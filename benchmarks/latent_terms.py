"""What each latent term and option does to latents: equal trainings from the bundled weights, and the report of each.

    python -m benchmarks.latent_terms --train 'datasets/ucf101/train/shard-*.tar' --test 'datasets/ucf101/test/shard-*.tar'

All see the same clips in the same order, with L1, LPIPS (`python -m tae.weights get=vgg`) and KL; the one called "none" has
nothing else. The numbers are those of docs/latents-report.md, of the test clips. The command resumes, from `--state`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks.common import RESULTS, publish
from benchmarks.terms import PLAIN, ROWS
from tae.latents.report import report_scalars
from tae.runtime.cli import CONFIG_FOLDER
from tae.train import train

UNTRAINED = "before training"
CHOSEN = (
    UNTRAINED, PLAIN, "equivariance, replace at 0.5", "equivariance, extra", "local correlation", "spectrum", "latent noise",
    "latent mask", "channel dropout",
)  # fmt: skip
QUIET = (
    "logger=csv", "callbacks.videos.num_clips=0", "page.clips=0", "validate_first=false", "trainer.accelerator=cpu",
    "loss.opl.weight=0",
)  # fmt: skip


def configure(name: str, arguments: argparse.Namespace) -> DictConfig:
    """A training, or of the first row one whose steps change nothing."""
    untrained = name == UNTRAINED
    run = {
        "init_from": "tiny",
        "resume": "auto",
        "seed": arguments.seed,
        "output_dir": arguments.state / name.replace(", ", "_").replace(" ", "_"),
        "data.shards.train": arguments.train,
        "data.shards.val": arguments.test,
        "data.shards.test": arguments.test,
        "data.num_frames": arguments.num_frames,
        "data.resolution": arguments.resolution,
        "data.batch_size": 1,
        "data.num_workers": 1,
        "optimizer.lr": 1e-12 if untrained else arguments.lr,
        "trainer.max_steps": 1 if untrained else arguments.steps,
        "trainer.val_check_interval": 1 if untrained else arguments.steps,
        "callbacks.last.every_n_steps": 40,
        "metrics": "[psnr,ssim,lpips]",
    }
    overrides = [*QUIET, "model=tiny", *(f"{key}={value}" for key, value in run.items()), *ROWS.get(name, ())]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=overrides)


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row: quality and the latents report after a training, which is read where it has ended before."""
    cfg = configure(name, arguments)
    written = Path(cfg.output_dir) / "metrics.json"
    found = json.loads(written.read_text()) if written.exists() else train(cfg)
    quality = {metric: values["mean"] for metric, values in found["metrics"].items()}
    return {"with": name} | quality | report_scalars(found["latents"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="pattern of shards")
    parser.add_argument("--test", required=True, help="pattern of shards")
    parser.add_argument("--rows", nargs="+", default=CHOSEN, choices=(UNTRAINED, *ROWS), metavar="ROW")
    parser.add_argument("--num-frames", type=int, default=16)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("outputs/latent_terms"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [measure(name, arguments) for name in arguments.rows]
    hidden = ("output", "state", "train", "test", "rows")
    settings = {name: value for name, value in vars(arguments).items() if name not in hidden}
    publish("latent_terms", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

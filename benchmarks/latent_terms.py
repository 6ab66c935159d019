"""What each latent term and option does to latents: equal trainings from the bundled weights, and the report of each.

    python -m benchmarks.latent_terms --train 'datasets/ucf101/train/shard-*.tar' --test 'datasets/ucf101/test/shard-*.tar'

All see the same clips in the same order, with L1, LPIPS (`python -m tae.weights get=vgg`) and KL; the one called "none" has
nothing else. The numbers are those of docs/latents-report.md, of the test clips. The command resumes, from `--state`.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.terms import PLAIN, ROWS
from benchmarks.trainings import Training, make_parser, publish_trainings
from tae.latents.report import report_scalars

UNTRAINED = "before training"
CHOSEN = (
    UNTRAINED, PLAIN, "equivariance, replace at 0.5", "equivariance, extra", "local correlation", "spectrum", "latent noise",
    "latent mask", "channel dropout",
)  # fmt: skip
COMMON = ("model=tiny", "init_from=tiny", "loss.opl.weight=0", "metrics=[psnr,ssim,lpips]", "report.latents=true")


def training(name: str, arguments: argparse.Namespace) -> Training:
    """The training of a row, or of the first row one whose steps change nothing."""
    (seed,) = arguments.seeds
    return Training(name, seed, (*COMMON, *(("optimizer.lr=1e-12",) if name == UNTRAINED else ROWS[name])))


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row: quality and the latents report after a training."""
    found = training(name, arguments).run(arguments, steps=1 if name == UNTRAINED else None)
    quality = {metric: values["mean"] for metric, values in found["metrics"].items()}
    return {"with": name} | quality | report_scalars(found["latents"])


def main() -> None:
    parser = make_parser(__doc__, steps=240, looks=1, state=Path("outputs/latent_terms"))
    parser.add_argument("--rows", nargs="+", default=CHOSEN, choices=(UNTRAINED, *ROWS), metavar="ROW")
    arguments = parser.parse_args()
    if len(arguments.seeds) != 1:
        parser.error("one seed alone: the table has a row for each training")
    publish_trainings("latent_terms", arguments, [measure(name, arguments) for name in arguments.rows])


if __name__ == "__main__":
    main()

"""The ablation at a small budget: equal trainings of the network `tiny`, each compared with a base.

    python -m benchmarks.ablations --train 'datasets/folder/train/shard-*.tar' --test 'datasets/ucf101/test/shard-*.tar' \\
        --photographs 'datasets/images/train/shard-*.tar'

The arms are the files of conf/experiment/ablation/, which `python train.py -m 'experiment=glob(ablation/*)'` trains at full
size. Those that change what the same weights compute start from random weights, with `base` from random weights beside
them (`--lr-random`); all others train the bundled weights further. All see the same clips in the same order. An adversary,
smaller and faster than that of the file, is heard in the second half.

A difference is to the base of the same start, with its 95 % interval by bootstrap over test clips and seeds; what is said of
latents is the mean over seeds (docs/latents-report.md). The command resumes from `--state`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.ablation_costs import ARMS, BASE
from benchmarks.trainings import Training, difference, make_parser, publish_trainings, quoted, spread_over_seeds
from tae.latents.report import report_scalars

BUNDLED, RANDOM = "bundled", "random"
FROM_RANDOM = ("group_norm_clip", "padding_zeros", "temporal_random")
SMALL = (
    "model=tiny", "scheduler=one_cycle", "report.latents=true", "metrics=[psnr,lpips,outlier_rate]", "data.shards.val=null",
)  # fmt: skip
SHOWN = {"psnr": "dB", "lpips": "LPIPS"}
OF_LATENTS = (
    "effective_rank", "spectrum_distance", "velocity_variance", "neighbour_correlation", "equivariance_half_size",
    "psnr_at_noise_0.2",
)  # fmt: skip


def start_of(name: str) -> str:
    """Which weights an arm starts from."""
    return RANDOM if name in FROM_RANDOM else BUNDLED


def training(name: str, start: str, seed: int, arguments: argparse.Namespace) -> Training:
    """The training of an arm at the small budget."""
    overrides = [f"experiment=ablation/{name}", *SMALL, f"init_from={'null' if start == RANDOM else 'tiny'}"]
    if start == RANDOM:
        overrides.append(f"optimizer.lr={arguments.lr_random}")
    if name.startswith("images"):
        images = {"shards": quoted(arguments.photographs or []), "batch_size": 4 * arguments.batch}
        overrides += [f"data.sources.images.{key}={value}" for key, value in images.items()]
    if name == "patch_adversary":
        when = {"start": arguments.steps // 2, "alone": arguments.steps // 20, "ramp": arguments.steps // 20}
        what = {"frame_channels": 16, "clip_channels": 16, "optimizer.lr": 1e-3}
        overrides += [f"adversary.{key}={value}" for key, value in (when | what).items()]
    return Training(f"{name} {start}", seed, overrides)


def row_of(documents: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Quality, its differences to the base, and latents, of trainings that differ in their seed."""
    cells: dict[str, Any] = {}
    for metric, title in SHOWN.items():
        cells[title] = spread_over_seeds([document["metrics"][metric]["mean"] for document in documents])
        cells[f"{title}, to the base"] = None if documents is base else difference(documents, base, metric)
    reports = [report_scalars(document["latents"]) for document in documents]
    for name in OF_LATENTS:
        values = [report[name] for report in reports if name in report]  # of few clips not all can be told
        cells[name] = fmean(values) if len(values) == len(reports) else None
    return cells


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each arm, below the base that it started with."""
    rows = []
    for start in (BUNDLED, RANDOM):
        arms = [name for name in arguments.arms if name != BASE and start_of(name) == start]
        if not arms:
            continue
        found = {
            name: [training(name, start, seed, arguments).run(arguments) for seed in arguments.seeds]
            for name in (BASE, *arms)
        }
        rows += [{"arm": name, "from": start} | row_of(one, found[BASE]) for name, one in found.items()]
    return rows


def main() -> None:
    parser = make_parser(__doc__, lr=1e-4, lpips="alex", looks=1, state=Path("outputs/ablations"))
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, metavar="ARM")
    parser.add_argument("--photographs", nargs="+", help="patterns of shards, for the arms with images")
    parser.add_argument("--lr-random", type=float, default=1e-3, help="of what starts from random weights")
    arguments = parser.parse_args()
    if arguments.photographs is None and any(name.startswith("images") for name in arguments.arms):
        parser.error("the arms with images need --photographs; or name others by --arms")
    publish_trainings("ablations", arguments, measure(arguments))


if __name__ == "__main__":
    main()

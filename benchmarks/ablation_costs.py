"""What each arm of the ablation costs at full size: memory and arithmetic by the planner, hours by a measured step.

    python -m benchmarks.ablation_costs

Arms are the files of conf/experiment/ablation/. Memory is of the largest step that an arm has, arithmetic the mean over
its steps: of its sources by their weights, and of those before and after an adversary's start. Equivariance is counted as
plain steps, of which it makes some smaller. Hours are of one run, all devices at once, computed and not measured: steps
times `--seconds` (of the base's step on one H200, benchmarks/results/step_nvidia-h200_2026-11-23_1.md) times the share of
arithmetic. What loading, communication, validation and the last evaluation take is not in them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from benchmarks.common import RESULTS, publish
from data.sampling.mixture import make_streams, plain_stream
from tae.planning.planner import GB, Shape, build_losses, make_planner
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.config import plain

BASE = "base"
ARMS = sorted(
    (file.stem for file in Path(CONFIG_FOLDER, "experiment/ablation").glob("*.yaml")),
    key=lambda name: (name != BASE, name),
)


def compose_arm(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a training, as `python train.py experiment=ablation/NAME` composes it."""
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=[f"experiment=ablation/{name}", *overrides])


def streams_of(cfg: DictConfig) -> list[tuple[float, Shape]]:
    """(share of the steps, shape of a batch) of each source."""
    data = plain(cfg.data)
    base = plain_stream(data["num_frames"], data["resolution"], data["batch_size"])
    streams = make_streams(base, data["sources"])
    total = sum(stream.weight for stream in streams)
    return [(stream.weight / total, stream.shape[:4]) for stream in streams]


def plan(cfg: DictConfig, device: str) -> dict[str, float]:
    """Peak memory on the device, and arithmetic of a step in the mean over the run."""
    with open_dict(cfg):
        cfg.device = device
    planner, (*_, loss) = make_planner(cfg), build_losses(cfg.loss).values()
    counting = replace(planner, device="cpu")  # a GPU's kernels do not count what they compute
    late = 0.0 if cfg.adversary is None else 1 - cfg.adversary.start / cfg.trainer.max_steps
    peak = flops = 0.0
    for share, shape in streams_of(cfg):
        peak = max(peak, planner.step(shape, loss, with_adversary=late > 0).peak_bytes)
        for part, with_adversary in ((1 - late, False), (late, True)):
            flops += share * part * counting.step(shape, loss, with_adversary).flops if part else 0.0
    return {"peak (GB)": peak / GB, "TFLOP a step": flops / 1e12}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each arm, and one for all together."""
    rows: list[dict[str, Any]] = []
    for name in arguments.arms:
        cfg = compose_arm(name, arguments.overrides)
        costs = plan(cfg, arguments.device)
        share = costs["TFLOP a step"] / (rows[0] if rows else costs)["TFLOP a step"]
        hours = cfg.trainer.max_steps * arguments.seconds * share / 3600
        rows.append({"arm": name, **costs, "of the first": share, "steps": cfg.trainer.max_steps, "hours": hours})
    together = {"steps": sum(row["steps"] for row in rows), "hours": sum(row["hours"] for row in rows)}
    return [*rows, {"arm": "all", "peak (GB)": None, "TFLOP a step": None, "of the first": None, **together}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of every arm, as on the command line of train.py")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, metavar="ARM")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="whose code is planned for")
    parser.add_argument("--seconds", type=float, default=0.2206)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "arms")}
    publish("ablation_costs", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

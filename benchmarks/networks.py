"""A training step of several networks of this project, side by side: its arithmetic, and its time.

    python -m benchmarks.networks --device cpu --dtype fp32 --size 16 128 128 --repeats 3
    python -m benchmarks.networks --device cuda --dtype bf16 --size 32 256 256

Forward, the four losses with LPIPS on random weights, backward, clipping, AdamW. The arithmetic is counted on tensors
without values, at `--counted-size` too large for a processor; the time is measured at `--size`, in turns.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import CLOCKS, DTYPES, MODELS, RESULTS, interleaved, publish, spread
from benchmarks.step import SEED, Step, build_loss
from tae import TemporalAutoencoder
from tae.losses import Objective
from tae.planning.planner import Planner


def teraflop(name: str, size: tuple[int, int, int], loss: Objective) -> float:
    """10^12 floating-point operations of a step, of matrix products and convolutions alone."""
    planner = Planner(lambda: TemporalAutoencoder(**MODELS[name]), torch.optim.AdamW, "cpu", autocast=None)
    return planner.step((1, *size), loss).flops / 1e12


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all; one row each, compared with the first."""
    loss, steps = build_loss(lpips=True), {}
    torch.manual_seed(SEED)
    clip = torch.rand(1, *arguments.size, 3, device=arguments.device).movedim(-1, 1) * 2 - 1
    for name in arguments.networks:
        model = TemporalAutoencoder(**MODELS[name]).to(arguments.device)
        steps[name] = Step(model, loss, clip, DTYPES[arguments.dtype])
    counted = {name: teraflop(name, tuple(arguments.counted_size), loss) for name in steps}
    times = interleaved(dict(steps), arguments.device, arguments.warmup, arguments.repeats, arguments.clock)
    first = next(iter(steps))
    rows = []
    for name, step in steps.items():
        found = spread(times[name])
        rows.append({
            "network": name,
            "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
            "TFLOP": counted[name],
            f"times less than {first}": counted[first] / counted[name],
            "s/step": found["median"],
            "p25": found["p25"],
            "p75": found["p75"],
            f"times faster than {first}": spread(times[first])["median"] / found["median"],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of autocast; fp32 is without")
    parser.add_argument("--networks", nargs="+", choices=tuple(MODELS), default=["sd35", "haar", "haar1"])
    size = {"type": int, "nargs": 3, "metavar": ("FRAMES", "HEIGHT", "WIDTH")}
    parser.add_argument("--size", default=(32, 256, 256), help="whose step is timed", **size)
    parser.add_argument("--counted-size", default=(32, 256, 256), help="whose arithmetic is counted", **size)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("networks", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

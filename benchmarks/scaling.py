"""How the time and the memory of a training step grow with frames, resolution and batch.

    python -m benchmarks.scaling --device cuda --dtype bf16
    python -m benchmarks.scaling --device cpu --dtype fp32 --model tiny --base 8 64 64 --repeats 3

One row for each size around the base: frames, then resolution, then batch, halved and doubled.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import DTYPES, MODELS, RESULTS, interleaved, publish, spread
from benchmarks.step import VARIANTS, Step, build_loss, measure_memory

LEAST_SIDE, MULTIPLE = 32, 8  # LPIPS needs 16 pixels, the model works on multiples of 8


def sizes(base: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(batch, frames, height, width) around (1, *base), each once."""
    frames, height, width = base
    around = [(1, max(round(frames * factor), 1), height, width) for factor in (1 / 32, 0.25, 0.5, 1, 2)]
    for factor in (0.5, 0.75, 1.5):
        side = [max(round(extent * factor / MULTIPLE) * MULTIPLE, LEAST_SIDE) for extent in (height, width)]
        around.append((1, frames, side[0], side[1]))
    return list(dict.fromkeys([*around, (2, frames, height, width)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--model", choices=tuple(MODELS), default="sd35")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="shipped")
    parser.add_argument("--base", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    model = VARIANTS[arguments.variant](MODELS[arguments.model]).to(arguments.device)
    loss, rows = build_loss(lpips=True), []
    for size in sizes(arguments.base):
        clip = torch.rand(*size, 3, device=arguments.device).movedim(-1, 1) * 2 - 1
        step = Step(model, loss, clip, DTYPES[arguments.dtype])
        rows.append(
            {"batch": size[0], "frames": size[1], "height": size[2], "width": size[3], **measure(step, arguments)}
        )
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("scaling", arguments.device, settings, rows, arguments.output)


def measure(step: Step, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of a step; empty where the device's memory does not hold it."""
    device = arguments.device
    try:
        times = interleaved({"step": step}, device, arguments.warmup, arguments.repeats)["step"]
        memory = measure_memory(step) if device == "cuda" else None
    except torch.OutOfMemoryError:
        step.optimizer.zero_grad(set_to_none=True)
        return {"s/step": None, "p25": None, "p75": None, "us per 1000 pixels": None, "peak GB": None}
    found, pixels = spread(times), step.clip.numel() // 3
    return {
        "s/step": found["median"],
        "p25": found["p25"],
        "p75": found["p75"],
        "us per 1000 pixels": 1e9 * found["median"] / pixels,
        "peak GB": memory,
    }


if __name__ == "__main__":
    main()

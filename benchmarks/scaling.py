"""How the time and the memory of a training step grow with frames, resolution, batch and processes.

    python -m benchmarks.scaling --device cuda --dtype bf16
    python -m benchmarks.scaling --device cpu --dtype fp32 --model tiny --base 8 64 64 --repeats 3

One row for each size around the base: frames, then resolution, then batch, halved and doubled. Then one for each number
of processes, each with a clip of the base size: nccl with a GPU for each, or gloo with `--threads` threads for each;
the time for 1000 pixels is then that of the pixels of one process.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import DTYPES, MODELS, RESULTS, interleaved, publish, spread
from benchmarks.step import VARIANTS, Step, build_loss, measure_memory
from tae.losses import Objective
from tae.losses.step import compute_loss

LEAST_SIDE, MULTIPLE = 32, 8  # LPIPS needs 16 pixels, the model works on multiples of 8


def sizes(base: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(batch, frames, height, width) around (1, *base), each once."""
    frames, height, width = base
    around = [(1, max(round(frames * factor), 1), height, width) for factor in (1 / 32, 0.25, 0.5, 1, 2)]
    for factor in (0.5, 0.75, 1.5):
        side = [max(round(extent * factor / MULTIPLE) * MULTIPLE, LEAST_SIDE) for extent in (height, width)]
        around.append((1, frames, side[0], side[1]))
    return list(dict.fromkeys([*around, (2, frames, height, width)]))


class ModelAndLoss(nn.Module):
    """Model and loss in one: DDP has to wrap what returns the loss, as in training."""

    def __init__(self, model: nn.Module, loss: Objective) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, clip: Tensor) -> Tensor:
        return compute_loss(self.model, self.loss, clip).total


class DistributedStep(Step):
    """A step whose gradients are averaged over all processes while the backward pass runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        together = ModelAndLoss(self.model, self.loss)
        self.replica = DistributedDataParallel(together, static_graph=True, gradient_as_bucket_view=True)

    def compute_loss(self) -> Tensor:
        return self.replica(self.clip)


def process(rank: int, world_size: int, arguments: argparse.Namespace, folder: str) -> None:
    """One of several processes; the first one leaves its measurement in a file."""
    torch.set_num_threads(arguments.threads)
    if arguments.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if arguments.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    model = VARIANTS[arguments.variant](MODELS[arguments.model]).to(arguments.device)
    step = DistributedStep(
        model, build_loss(lpips=True), random_clip((1, *arguments.base), arguments.device), DTYPES[arguments.dtype]
    )
    found = measure(step, arguments)
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def in_processes(world_size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """A step of the base size in each of some processes at once."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(process, args=(world_size, arguments, folder), nprocs=world_size)
        return json.loads((Path(folder) / "found.json").read_text())


def random_clip(size: Sequence[int], device: str) -> Tensor:
    """(b, 3, t, h, w) in [-1, 1], channels-last in memory."""
    return torch.rand(*size, 3, device=device).movedim(-1, 1) * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--model", choices=tuple(MODELS), default="sd35")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="shipped")
    parser.add_argument("--base", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--processes", type=int, nargs="*", default=(), help="of DDP, one row for each number")
    parser.add_argument("--threads", type=int, default=1, help="of each of these processes")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    # First, while this process holds none of the GPU's memory.
    together = [row((1, *arguments.base), count, in_processes(count, arguments)) for count in arguments.processes]
    model = VARIANTS[arguments.variant](MODELS[arguments.model]).to(arguments.device)
    loss, rows = build_loss(lpips=True), []
    for size in sizes(arguments.base):
        step = Step(model, loss, random_clip(size, arguments.device), DTYPES[arguments.dtype])
        rows.append(row(size, None, measure(step, arguments)))
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("scaling", arguments.device, settings, rows + together, arguments.output)


def row(size: Sequence[int], processes: int | None, found: dict[str, Any]) -> dict[str, Any]:
    names = ("batch", "frames", "height", "width")
    return {**dict(zip(names, size, strict=True)), "DDP processes": processes, **found}


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

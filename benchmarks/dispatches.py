"""Operations that a training step hands to PyTorch's dispatcher: what a GPU's host has to launch, one by one.

    python -m benchmarks.dispatches
    python -m benchmarks.dispatches --model haar --no-checkpointing

Counted on the CPU, which needs the operations of the same graph; on a GPU the fused kernels take the place of some. The
number depends on the structure alone, so the channels are few and the clip is small.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import MODELS, RESULTS, publish
from benchmarks.step import SEED, Step, build_loss
from tae import TemporalAutoencoder

Result = TypeVar("Result")
NARROW = {"base_channels": 32, "norm_groups": 8}
SIZE = (9, 32, 32)  # VGG-16 halves 32 pixels five times
KINDS = {
    "views": ("permute", "view", "as_strided", "select", "slice", "unsqueeze", "squeeze", "transpose", "t", "detach",
              "expand", "split", "unbind", "_unsafe_view"),
    "casts and copies": ("_to_copy", "copy_", "clone", "new_empty_strided"),
    "convolutions and products": ("convolution", "convolution_backward", "mm", "addmm", "bmm"),
}  # fmt: skip


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def counted(function: Callable[[], Result]) -> tuple[Result, Counter[str]]:
    with Count() as count:
        result = function()
    return result, count.names


def count_step(model: str, checkpointing: bool, lpips: bool) -> dict[str, Counter[str]]:
    """The operations of each part of a second step; the first one makes the optimizer's moments."""
    torch.manual_seed(SEED)
    network = TemporalAutoencoder(**MODELS[model] | NARROW)
    network.gradient_checkpointing = checkpointing
    step = Step(network, build_loss(lpips), torch.rand(1, *SIZE, 3).movedim(-1, 1) * 2 - 1, torch.bfloat16)
    step()
    total, forward = counted(step.forward)
    _, backward = counted(total.backward)
    _, clipping = counted(lambda: nn.utils.clip_grad_norm_(network.parameters(), 1.0))
    _, update = counted(step.optimizer.step)
    return {"forward and losses": forward, "backward": backward, "clipping and update": clipping + update}


def row(part: str, names: Counter[str]) -> dict[str, Any]:
    kinds = {kind: sum(names[name] for name in members) for kind, members in KINDS.items()}
    return {"part": part, "operations": names.total(), **kinds, "others": names.total() - sum(kinds.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="sd35")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--lpips", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    parts = count_step(arguments.model, arguments.checkpointing, arguments.lpips)
    rows = [row(part, names) for part, names in parts.items()]
    rows.append(row("step", sum(parts.values(), Counter())))
    settings = {name: value for name, value in vars(arguments).items() if name != "output"} | {"size": SIZE}
    publish("dispatches", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

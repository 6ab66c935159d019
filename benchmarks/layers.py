"""One layer at a time in the forms it could have: which of them the model uses, and why.

python -m benchmarks.layers --device cuda --dtype bf16 --size 32 256 256 --channels 128
python -m benchmarks.layers --device cpu --dtype fp32 --size 4 32 32 --channels 128
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import naive
from benchmarks.common import DTYPES, RESULTS, interleaved, publish, spread
from tae.model.layers import Conv2_5d, GroupNorm, Upsample
from tae.model.temporal_conv import TemporalConv

GROUPS = 32


def forms(channels: int) -> dict[str, dict[str, nn.Module]]:
    """Part -> form -> layer; the first form of each part is the one with permutes and contiguous clips."""
    norm, silu = naive.GroupNorm(channels, GROUPS, "frame"), nn.SiLU()
    return {
        "GroupNorm, SiLU": {
            "two layers, frames permuted": nn.Sequential(norm, silu),
            "shipped": GroupNorm(channels, GROUPS, per="frame", silu=True),
        },
        "temporal convolution": {
            "conv1d on permuted rows": naive.TemporalConv(channels, "conv1d"),
            "conv3d": naive.TemporalConv(channels, "conv3d"),
            "shipped": TemporalConv(channels),
        },
        "2.5D convolution": {
            "permuted": naive.Conv2_5d(channels, channels, "conv1d"),
            "conv3d": naive.Conv2_5d(channels, channels, "conv3d"),
            "shipped": Conv2_5d(channels, channels),
        },
        "upsampling": {
            "nearest neighbour, then convolutions": naive.Upsample(channels, "conv1d"),
            "nearest neighbour, then conv3d": naive.Upsample(channels, "conv3d"),
            "shipped: transposed convolutions": Upsample(channels),
        },
    }


def round_trip(layer: nn.Module, x: Tensor, backward: bool) -> Callable[[], Any]:
    """Forward alone, or forward and backward with a random gradient."""
    x = x.requires_grad_(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = layer(x)
        if backward:
            torch.autograd.grad(out, [x, *layer.parameters()], F.hardtanh(out.detach()))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    options = {"device": arguments.device, "dtype": DTYPES[arguments.dtype]}
    stored = torch.randn(1, *arguments.size, arguments.channels, **options).movedim(-1, 1)
    rows = []
    for part, layers in forms(arguments.channels).items():
        for layer in layers.values():
            layer.to(**options)
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.02)
            if type(layer).__module__ == "tae.model.layers":
                layer.to(memory_format=torch.channels_last)
        clips = {form: stored if form.startswith("shipped") else stored.contiguous() for form in layers}
        for backward in (False, True):
            runs = {form: round_trip(layer, clips[form].detach(), backward) for form, layer in layers.items()}
            times = interleaved(runs, arguments.device, arguments.warmup, arguments.repeats)
            medians = {form: spread(values)["median"] for form, values in times.items()}
            passes = "forward, backward" if backward else "forward"
            rows += [
                {"part": part, "passes": passes, "form": form, "ms": 1e3 * median, "of the first": median / first}
                for first in [next(iter(medians.values()))]
                for form, median in medians.items()
            ]
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("layers", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

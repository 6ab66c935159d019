"""Encode and decode one tile with PyTorch (float32, bfloat16) and, exported, with onnxruntime, on the processor.

    python -m tae.export ckpt=tiny output=my-tae-onnx format=onnx
    python -m benchmarks.runtimes --ckpt tiny --export my-tae-onnx --size 32 128 128

The runtimes take turns, so that a busy moment of the machine hits all alike. bfloat16 is autocast, as precision=bf16
is. Beside the times: how far the result is from PyTorch's in float32, in levels of 255, at most and in the mean.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import CLOCKS, RESULTS, interleaved, publish, spread
from tae import load_model
from tae.model.codec import TileableCodec
from tae.model.onnx_codec import OnnxCodec

LEVELS = 127.5  # of uint8, in what a clip's range of 1 is


@torch.inference_mode()
def in_torch(function: Callable[[Tensor], Any], dtype: torch.dtype, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return function(x)


def ways(codec: TileableCodec, clip: Tensor, latents: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Both directions with what goes in."""
    return {"encode": (lambda x: codec.encode(x).mode(), clip), "decode": (codec.decode, latents)}


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every runtime; one row for each and each direction."""
    torch.manual_seed(0)
    loaded = load_model(arguments.ckpt)
    model, exported = loaded.model, OnnxCodec(arguments.export)
    if exported.description.checkpoint["encoder"] != loaded.encoder:
        raise SystemExit(f"error: --export {arguments.export} is not of --ckpt {arguments.ckpt}.")
    frames, height, width = arguments.size
    clip = torch.rand(1, frames, height, width, 3).movedim(-1, 1) * 2 - 1
    latents = in_torch(lambda x: model.encode(x).mode(), torch.float32, clip)
    functions: dict[str, Callable[[], Tensor]] = {}
    for way, (function, x) in ways(model, clip, latents).items():
        for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
            functions[f"{way}, {name}"] = partial(in_torch, function, dtype, x)
        functions[f"{way}, onnxruntime"] = partial(*ways(exported, clip, latents)[way])
    times = interleaved(dict(functions), "cpu", arguments.warmup, arguments.repeats, arguments.clock)
    rows = []
    for name, function in functions.items():
        way, runtime = name.split(", ")
        found, reference = spread(times[name]), f"{way}, torch fp32"
        difference = (function().float() - functions[reference]()).abs() * LEVELS
        rows.append({
            "of a tile": way,
            "runtime": runtime,
            **{f"ms {key}": 1e3 * value for key, value in found.items()},
            "times faster than torch fp32": spread(times[reference])["median"] / found["median"],
            "largest difference (levels)": difference.max().item() if way == "decode" else None,
            "mean difference (levels)": difference.mean().item() if way == "decode" else None,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="tiny", help="what `tae.load_model` takes")
    parser.add_argument("--export", type=Path, required=True, help="its folder of `python -m tae.export format=onnx`")
    parser.add_argument("--size", type=int, nargs=3, default=(32, 128, 128), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "export")}
    publish("runtimes", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

"""Decode latents with this repository's networks and with tiny decoders of several widths, all with random weights.

    python -m benchmarks.latent_decoders --device cuda --dtype bf16 --size 32 256 256
    python -m benchmarks.latent_decoders --device cpu --dtype fp32 --size 16 96 96 --repeats 5

Every decoder gets the same latents, in rounds over all of them. Arithmetic is that of matrix products and convolutions.
`benchmarks.decoders` is about something else: readers of video files.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import DTYPES, MODELS, RESULTS, interleaved, publish, spread
from tae import TemporalAutoencoder, TinyDecoder
from tae.planning.meter import Meter

REFERENCE = "sd35"
HAAR = {"channel_multipliers": (2, 4), "frontend": "haar", "folds": 2}
LATENT_CHANNELS = 16


def build(device: str, dtype: torch.dtype, widths: Sequence[int]) -> dict[str, tuple[nn.Module, Callable[..., Tensor]]]:
    """{name: what its parameters are counted of, how it decodes}."""
    decoders: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {}
    for name, settings in {REFERENCE: MODELS[REFERENCE], "haar": HAAR, "tiny": MODELS["tiny"]}.items():
        model = TemporalAutoencoder(**settings).to(device, dtype).eval()
        decoders[name] = model.decoder, model.decode
    for width in widths:
        tiny = TinyDecoder(latent_channels=LATENT_CHANNELS, width=width).to(device, dtype).eval()
        decoders[f"tiny_decoder, width {width}"] = tiny, tiny.decode
    return decoders


@torch.no_grad()
def run(decode: Callable[..., Tensor], latents: Tensor, size: Sequence[int]) -> Tensor:
    frames, height, width = size
    return decode(latents, num_frames=frames, size=(height, width))


def tera_flops(decode: Callable[[], Tensor]) -> float:
    with Meter() as meter:
        decode()
    return meter.flops / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--size", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--widths", type=int, nargs="+", default=(64, 24), help="of the tiny decoders")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    dtype = DTYPES[arguments.dtype]
    decoders = build(arguments.device, dtype, arguments.widths)
    frames, height, width = (-(-extent // 8) for extent in arguments.size)
    latents = torch.randn(1, LATENT_CHANNELS, frames, height, width, device=arguments.device, dtype=dtype)
    calls = {name: partial(run, decode, latents, arguments.size) for name, (_, decode) in decoders.items()}
    times = {
        name: spread(found)
        for name, found in interleaved(dict(calls), arguments.device, arguments.warmup, arguments.repeats).items()
    }
    rows: list[dict[str, Any]] = [
        {
            "decoder": name,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "TFLOP": tera_flops(calls[name]),
            **{f"ms/frame {key}": 1e3 * value / arguments.size[0] for key, value in times[name].items()},
            f"times faster than {REFERENCE}": times[REFERENCE]["median"] / times[name]["median"],
        }
        for name, (module, _) in decoders.items()
    ]
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("latent_decoders", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

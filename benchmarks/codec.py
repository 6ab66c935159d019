"""Encode and decode a clip with this project's networks and with diffusers' video autoencoders, all with random weights.

    python -m benchmarks.codec --device cuda --dtype bf16 --size 32 256 256
    python -m benchmarks.codec --device cpu --dtype fp32 --size 16 96 96 --only haar haar1 AutoencoderKLCosmos

Two groups: those that convolve at full resolution, and those that first fold pixels into channels, which makes them about
ten times cheaper by design. Peers have the sizes of their release, which are diffusers' defaults. Those that are causal in
time take one frame more, the count they are made for; times are per frame. All take turns, so that a busy moment of the
machine hits all alike.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import CLOCKS, DTYPES, MODELS, RESULTS, interleaved, publish, spread
from tae import TemporalAutoencoder

FULL, FOLDED = "full resolution", "folded pixels"
OURS = {"sd35": FULL, "haar": FOLDED, "haar1": FOLDED}
PEERS = {
    "AutoencoderKLWan": FULL,
    "AutoencoderKLHunyuanVideo": FULL,
    "AutoencoderKLCogVideoX": FULL,
    "AutoencoderKLCosmos": FOLDED,
    "AutoencoderKLLTXVideo": FOLDED,
}


@dataclass
class Codec:
    """A model, the clip it takes, and the way there and back."""

    model: nn.Module
    clip: Tensor
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        with torch.inference_mode():
            self.latents = self.encode(self.clip)

    @property
    def frames(self) -> int:
        return self.clip.shape[2]

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.inference_mode()
    def run_encoder(self) -> Tensor:
        return self.encode(self.clip)

    @torch.inference_mode()
    def run_decoder(self) -> Tensor:
        return self.decode(self.latents)


def build(device: str, dtype: torch.dtype, size: Sequence[int], only: Sequence[str]) -> dict[str, Codec]:
    """The codecs on the device; the clip of the causal ones is one frame longer."""
    frames, height, width = size
    longer = torch.rand(1, frames + 1, height, width, 3, device=device, dtype=dtype).movedim(-1, 1) * 2 - 1
    codecs = {}
    for name in only:
        if name in OURS:
            model = TemporalAutoencoder(**MODELS[name]).to(device, dtype).eval()
            decode = partial(model.decode, num_frames=frames, size=(height, width))
            codecs[name] = Codec(
                model, longer[:, :, :frames], lambda clip, model=model: model.encode(clip).mode(), decode
            )
        else:
            codecs[name] = make_peer(name, longer.contiguous(), device, dtype)
    return codecs


def make_peer(name: str, clip: Tensor, device: str, dtype: torch.dtype) -> Codec:
    import diffusers

    peer: Any = getattr(diffusers, name)().to(device, dtype).eval()
    return Codec(peer, clip, lambda x: peer.encode(x).latent_dist.mode(), lambda latents: peer.decode(latents).sample)


def peak_gb(codec: Codec) -> float:
    """Peak of one round trip in GB (1e9 bytes), as if this were the only model on the device."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    codec.run_encoder()
    codec.run_decoder()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in codec.model.parameters())
    return (torch.cuda.max_memory_allocated() - before + weights) / 1e9


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all; one row each."""
    codecs = build(arguments.device, DTYPES[arguments.dtype], arguments.size, arguments.only)
    functions = {("encode", name): codec.run_encoder for name, codec in codecs.items()}
    functions |= {("decode", name): codec.run_decoder for name, codec in codecs.items()}
    seconds = interleaved(functions, arguments.device, arguments.warmup, arguments.repeats, arguments.clock)
    both = {
        name: [sum(pair) / codec.frames for pair in zip(seconds["encode", name], seconds["decode", name], strict=True)]
        for name, codec in codecs.items()
    }
    fastest = {
        group: min((median(both[name]) for name in codecs if PEERS.get(name) == group), default=None)
        for group in (FULL, FOLDED)
    }
    return [
        row(name, codec, seconds["encode", name], seconds["decode", name], both[name], fastest, arguments.device)
        for name, codec in codecs.items()
    ]


def row(
    name: str, codec: Codec, encoding: Sequence[float], decoding: Sequence[float], both: Sequence[float],
    fastest: dict[str, float | None], device: str,
) -> dict[str, Any]:  # fmt: skip
    out, group = codec.run_decoder(), (OURS | PEERS)[name]
    assert out.shape == codec.clip.shape, f"{name}: {tuple(codec.clip.shape)} became {tuple(out.shape)}"
    peer, found = fastest[group], spread(both)
    return {
        "autoencoder": name,
        "group": group,
        "parameters": codec.parameters,
        "latents": "x".join(map(str, codec.latents.shape[1:])),
        "frames": codec.frames,
        "encode, ms/frame": 1e3 * median(encoding) / codec.frames,
        "decode, ms/frame": 1e3 * median(decoding) / codec.frames,
        **{f"both, ms/frame {key}": 1e3 * value for key, value in found.items()},
        "times faster than the fastest peer of its group": None if peer is None else peer / found["median"],
        "peak GB": peak_gb(codec) if device == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--size", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--only", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS], help="all without it")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("codec", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

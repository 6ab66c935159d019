"""Encode and decode a clip with this model and with diffusers' video autoencoders, all with random weights.

    python -m benchmarks.codec --device cuda --dtype bf16 --size 32 256 256
    python -m benchmarks.codec --device cpu --dtype fp32 --size 32 64 64 --repeats 3

Two groups: those that convolve at full resolution as this model does, and those that first fold pixels into channels,
which makes them about ten times cheaper by design. Autoencoders that are causal in time take one frame more, the count
they are made for; times are per frame.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import DTYPES, RESULTS, interleaved, publish, spread
from tae import TemporalAutoencoder

GROUPS = {
    "full resolution": ("AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLCogVideoX"),
    "folded pixels": ("AutoencoderKLCosmos", "AutoencoderKLLTXVideo"),
}


@dataclass
class Codec:
    """A model, the clip it takes, and the way there and back."""

    group: str
    model: nn.Module
    clip: Tensor
    round_trip: Callable[[nn.Module, Tensor], Tensor]

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        return self.round_trip(self.model, self.clip)


def ours(model: nn.Module, clip: Tensor) -> Tensor:
    assert isinstance(model, TemporalAutoencoder)
    return model.decode(model.encode(clip).mode(), num_frames=clip.shape[2], size=clip.shape[3:])


def theirs(model: Any, clip: Tensor) -> Tensor:
    return model.decode(model.encode(clip).latent_dist.mode()).sample


def build(device: str, dtype: torch.dtype, size: Sequence[int], only: Sequence[str]) -> dict[str, Codec]:
    """Every codec on the device; the clip of the causal ones is one frame longer."""
    import diffusers

    frames, height, width = size
    longer = torch.rand(1, frames + 1, height, width, 3, device=device, dtype=dtype).movedim(-1, 1) * 2 - 1
    model = TemporalAutoencoder().to(device, dtype).eval()
    codecs = {"TemporalAutoencoder": Codec("full resolution", model, longer[:, :, :frames], ours)}
    for group, names in GROUPS.items():
        for name in names:
            if not only or name in only:
                peer = getattr(diffusers, name)().to(device, dtype).eval()
                codecs[name] = Codec(group, peer, longer.contiguous(), theirs)
    return codecs


def peak_gb(codec: Codec) -> float:
    """Peak of one round trip in GB (1e9 bytes), as if this were the only model on the device."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    codec()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in codec.model.parameters())
    return (torch.cuda.max_memory_allocated() - before + weights) / 1e9


def row(name: str, codec: Codec, times: Sequence[float], fastest: float, device: str) -> dict[str, Any]:
    frames, found = codec.clip.shape[2], spread(times)
    out = codec()
    assert out.shape == codec.clip.shape, f"{name}: {tuple(codec.clip.shape)} became {tuple(out.shape)}"
    return {
        "autoencoder": name,
        "group": codec.group,
        "parameters": sum(parameter.numel() for parameter in codec.model.parameters()),
        "frames": frames,
        **{f"ms/frame {key}": 1e3 * value / frames for key, value in found.items()},
        "times faster than the fastest peer at full resolution": fastest / (found["median"] / frames),
        "peak GB": peak_gb(codec) if device == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--size", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    named = [name for names in GROUPS.values() for name in names]
    parser.add_argument("--only", nargs="+", default=[], choices=named, help="peers to compare with; all without it")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    codecs = build(arguments.device, DTYPES[arguments.dtype], arguments.size, arguments.only)
    times = interleaved(dict(codecs), arguments.device, arguments.warmup, arguments.repeats)
    peers = [name for name, codec in codecs.items() if codec.group == "full resolution" and codec.round_trip is theirs]
    fastest = min((spread(times[name])["median"] / codecs[name].clip.shape[2] for name in peers), default=float("nan"))
    rows = [row(name, codec, times[name], fastest, arguments.device) for name, codec in codecs.items()]
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("codec", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()

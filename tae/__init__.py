"""Temporal Autoencoder: video to a small latent and back.

Importing this package costs nothing: each name is imported when it is first used. What they need is torch, numpy,
safetensors and huggingface_hub, nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tae.model.autoencoder import TemporalAutoencoder
    from tae.model.frame_conversion import clip_to_frames, frames_to_clip
    from tae.model.interface import AutoencoderOutput
    from tae.model.posterior import DiagonalGaussian
    from tae.model.pretrained import load_model
    from tae.model.streaming import DecoderStream, EncoderStream, decode_stream, encode_stream
    from tae.model.tiling import Tiling
    from tae.model.tiny_decoder import TinyDecoder
    from tae.runtime.errors import UserError

__all__ = [
    "AutoencoderOutput",
    "DecoderStream",
    "DiagonalGaussian",
    "EncoderStream",
    "TemporalAutoencoder",
    "Tiling",
    "TinyDecoder",
    "UserError",
    "clip_to_frames",
    "decode_stream",
    "encode_stream",
    "frames_to_clip",
    "load_model",
]

_HOMES = {
    "tae.model.autoencoder": ("TemporalAutoencoder",),
    "tae.model.frame_conversion": ("clip_to_frames", "frames_to_clip"),
    "tae.model.interface": ("AutoencoderOutput",),
    "tae.model.posterior": ("DiagonalGaussian",),
    "tae.model.pretrained": ("load_model",),
    "tae.model.streaming": ("DecoderStream", "EncoderStream", "decode_stream", "encode_stream"),
    "tae.model.tiling": ("Tiling",),
    "tae.model.tiny_decoder": ("TinyDecoder",),
    "tae.runtime.errors": ("UserError",),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562), so that a command can answer `--help` without torch."""
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Temporal Autoencoder: video to a small latent and back.

Importing this package needs torch, safetensors and huggingface_hub, nothing else.
"""

from tae.model.autoencoder import AutoencoderOutput, TemporalAutoencoder
from tae.model.clip import clip_to_frames, frames_to_clip
from tae.model.posterior import DiagonalGaussian
from tae.model.pretrained import load_model
from tae.model.tiling import Tiling, decode_stream, encode_stream
from tae.runtime.errors import UserError

__all__ = [
    "AutoencoderOutput",
    "DiagonalGaussian",
    "TemporalAutoencoder",
    "Tiling",
    "UserError",
    "clip_to_frames",
    "decode_stream",
    "encode_stream",
    "frames_to_clip",
    "load_model",
]

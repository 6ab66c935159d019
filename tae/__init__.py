"""Temporal Autoencoder: video to a small latent and back.

Importing this package needs torch, safetensors and huggingface_hub, nothing else.
"""

from tae.autoencoder import AutoencoderOutput, TemporalAutoencoder
from tae.clip import clip_to_frames, frames_to_clip
from tae.errors import UserError
from tae.posterior import DiagonalGaussian

__all__ = [
    "AutoencoderOutput",
    "DiagonalGaussian",
    "TemporalAutoencoder",
    "UserError",
    "clip_to_frames",
    "frames_to_clip",
]

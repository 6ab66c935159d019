"""The interface of an autoencoder to what runs one: tiles, streams, probes of latents."""

from typing import Protocol

import torch
from torch import Tensor

from tae.model.posterior import DiagonalGaussian


class LatentDecoder(Protocol):
    """What decodes latents: an autoencoder, or a decoder alone."""

    time_factor: int
    space_factor: int

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of latents, of so many frames, rows and columns."""


class Codec(LatentDecoder, Protocol):
    """An autoencoder with an encoder and a decoder of its own: ours, in PyTorch or exported, or one of diffusers
    through its adapter."""

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The posterior of (b, 3, t, h, w)."""


class TileableDecoder(LatentDecoder, Protocol):
    """One that takes any number of latent frames."""

    latent_channels: int


class TileableCodec(Codec, Protocol):
    """One that takes any number of frames, so that a video may be cut anywhere, as ours may."""

    latent_channels: int

    @property
    def device(self) -> torch.device:
        """Where clips and latents have to be."""

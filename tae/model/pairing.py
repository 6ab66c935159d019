"""The encoder of one autoencoder with the decoder of another that belongs to it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tae.model.autoencoder import AutoencoderOutput
from tae.model.codec import LatentDecoder
from tae.model.posterior import DiagonalGaussian
from tae.model.tiny_decoder import TinyDecoder


class PairedAutoencoder(nn.Module):
    """An encoder and a decoder of two models; otherwise like either.

    Args:
        teacher: the autoencoder that encodes.
        decoder: decodes its latents; an nn.Module.
    """

    starting_weights: dict[str, str | None] | None = None  # of the decoder

    def __init__(self, teacher: Any, decoder: LatentDecoder) -> None:
        super().__init__()
        self.teacher = teacher
        self.decoder = decoder
        self.latent_channels: int = teacher.latent_channels
        self.time_factor: int = teacher.time_factor
        self.space_factor: int = teacher.space_factor
        self.name = f"{type(decoder).__name__} with the encoder of {type(teacher).__name__}"

    @property
    def device(self) -> torch.device:
        """Where the weights are, and clips and latents have to be."""
        return self.teacher.device

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The teacher's posterior of (b, 3, t, h, w) in [-1, 1]."""
        return self.teacher.encode(clip)

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of latents (b, c, t', h', w'), of so many frames, rows and columns from the start; not clamped."""
        return cast(LatentDecoder, self.decoder).decode(latents, num_frames, size)

    def forward(
        self, clip: Tensor, sample_posterior: bool = True, transform: Callable[[Tensor], Tensor] | None = None
    ) -> AutoencoderOutput:
        """As `TemporalAutoencoder.forward`."""
        posterior = self.encode(clip)
        latents = posterior.sample() if sample_posterior else posterior.mode()
        if transform is None:
            reconstruction = self.decode(latents, clip.shape[2], (clip.shape[3], clip.shape[4]))
        else:
            reconstruction = self.decode(transform(latents), clip.shape[2])
        return AutoencoderOutput(reconstruction, posterior, latents)

    def padded(self, clip: Tensor) -> Tensor:
        """As the teacher pads it."""
        return self.teacher.padded(clip)

    def about_input(self, num_frames: int, height: int, width: int) -> str:
        """In words, which clips the encoder takes, and what is done to those of this size."""
        return self.teacher.about_input(num_frames, height, width)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latent of a clip of this size."""
        return self.teacher.latent_shape(num_frames, height, width)


def tiny_decoder_of(model: object) -> TinyDecoder | None:
    """The tiny decoder that decodes for a model, if one does."""
    decoder = model.decoder if isinstance(model, PairedAutoencoder) else model
    return decoder if isinstance(decoder, TinyDecoder) else None

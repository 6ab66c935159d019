"""The encoder of one autoencoder with the decoder of another that belongs to it."""

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from tae.model.codec import LatentDecoder
from tae.model.interface import VideoAutoencoder
from tae.model.posterior import DiagonalGaussian
from tae.model.tiny_decoder import TinyDecoder


class PairedAutoencoder(VideoAutoencoder):
    """An encoder and a decoder of two models; otherwise like either. Its architecture and what it saves are the decoder's.

    Args:
        teacher: the autoencoder that encodes.
        decoder: decodes its latents, a `LatentDecoder` that is an nn.Module.
    """

    def __init__(self, teacher: VideoAutoencoder, decoder: Any) -> None:
        super().__init__()
        self.teacher = teacher
        self.decoder = decoder
        self.corruption = None
        self.architecture = decoder.architecture
        self.latent_channels = teacher.latent_channels
        self.time_factor, self.space_factor = teacher.time_factor, teacher.space_factor
        self.cuts_anywhere, self.is_gaussian = teacher.cuts_anywhere, teacher.is_gaussian
        self.name = f"{type(decoder).__name__} with the encoder of {type(teacher).__name__}"

    @property
    def encoding_modules(self) -> nn.ModuleList:
        return self.teacher.encoding_modules

    @property
    def decoding_modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.decoder])

    @property
    def last_layer(self) -> Tensor:
        return cast(Any, self.decoder).last_layer

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the decoder's folder."""
        cast(Any, self.decoder).save_pretrained(save_directory)

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The teacher's posterior of (b, 3, t, h, w) in [-1, 1]."""
        return self.teacher.encode(clip)

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of latents (b, c, t', h', w'), of so many frames, rows and columns from the start; not clamped."""
        return cast(LatentDecoder, self.decoder).decode(latents, num_frames, size)

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

"""What training, evaluation and planning ask of a video autoencoder, whoever wrote its network."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tae.model.corruption import LatentCorruption
from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError


@dataclass(frozen=True)
class AutoencoderOutput:
    """Result of a forward pass.

    Attributes:
        reconstruction: (b, 3, t, h, w), the size of the clip that went in; of another size where latents were transformed.
        posterior: over latents (b, c, t', h', w'): of our own networks (b, latent_channels, ceil(t / 8), ceil(h / 8),
            ceil(w / 8)).
        latents: a sample of the posterior, or its mode; what was decoded, but for a transform and training's corruption.
    """

    reconstruction: Tensor
    posterior: DiagonalGaussian
    latents: Tensor


class VideoAutoencoder(nn.Module, ABC):
    """An encoder to a posterior over latents, and a decoder.

    Attributes:
        name: of the class of the network.
        architecture: plain values that the network can be built from, without its weights; in every checkpoint.
        latent_channels: c.
        time_factor, space_factor: frames, and pixels along an axis, for each of the latent.
        encoder_parts, decoder_parts: names of the submodules that make latents, and that make clips of them.
        cuts_anywhere: whether it takes any number of frames, so that a video may be cut into tiles that fit together.
        is_gaussian: whether the encoder gives variances; else the posterior is as narrow as one can be.
        starting_weights: where training started from: {kind of source: source, "sha256": of its file}; in checkpoints.
        corruption: of latents in training; no part of the architecture.
    """

    name: str
    architecture: dict[str, Any]
    latent_channels: int
    time_factor: int
    space_factor: int
    encoder_parts: tuple[str, ...] = ("encoder",)
    decoder_parts: tuple[str, ...] = ("decoder",)
    cuts_anywhere: bool = False
    is_gaussian: bool = True
    starting_weights: dict[str, str | None] | None = None
    corruption: LatentCorruption | None

    @abstractmethod
    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The posterior, in float32, of (b, 3, t, h, w) in [-1, 1]."""

    @abstractmethod
    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of latents (b, c, t', h', w'), of so many frames, rows and columns from the start; not clamped."""

    @abstractmethod
    def padded(self, clip: Tensor) -> Tensor:
        """The clip with its last row and column (last frame, where the network asks for it) repeated to whole latents."""

    @abstractmethod
    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latent of a clip of this size."""

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The last weight of the decoder that is trained, by which gradients of several losses are compared."""

    @abstractmethod
    def about_input(self, num_frames: int, height: int, width: int) -> str:
        """In words, which clips the network takes, and what is done to those of this size."""

    @abstractmethod
    def save_pretrained(self, save_directory: str | Path) -> object:
        """Write the folder that `from_pretrained` of the network's class reads."""

    def forward(
        self, clip: Tensor, sample_posterior: bool = True, transform: Callable[[Tensor], Tensor] | None = None
    ) -> AutoencoderOutput:
        """Encode and decode (b, 3, t, h, w); see `AutoencoderOutput`. Without sampling the posterior's mode is decoded.

        Args:
            transform: of latents (b, c, t', h', w') in space, before they are decoded. The reconstruction then is that of
                the `padded` clip under the same transform.
        """
        posterior = self.encode(clip)
        latents = posterior.sample() if sample_posterior else posterior.mode()
        decoded = latents if self.corruption is None or not self.training else self.corruption(latents)
        if transform is None:
            reconstruction = self.decode(decoded, clip.shape[2], (clip.shape[3], clip.shape[4]))
        else:
            reconstruction = self.decode(transform(decoded), clip.shape[2])
        return AutoencoderOutput(reconstruction, posterior, latents)

    def decoder_features(self, latents: Tensor) -> list[Tensor]:
        """What the decoder makes of latents (b, c, t', h', w') at their resolution and at the next: (b, c', t, h, w).

        Raises:
            UserError: this decoder shows nothing.
        """
        raise UserError(f"{self.name} shows no features of its decoder: set loss.features.weight=0 to distil it.")

    @property
    def device(self) -> torch.device:
        """Where the weights are, and clips and latents have to be."""
        return next(self.parameters()).device

    @property
    def encoding_modules(self) -> nn.ModuleList:
        """All that has a part in the latents."""
        return nn.ModuleList(map(self.get_submodule, self.encoder_parts))

    @property
    def decoding_modules(self) -> nn.ModuleList:
        """All that has a part in the reconstruction, the encoder left aside."""
        return nn.ModuleList(map(self.get_submodule, self.decoder_parts))

"""The encoder's result: a diagonal Gaussian over latents."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)  # the image autoencoder's own clamp; exp() stays finite in float32


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal distributions, one for each latent value.

    Shapes (c latent channels; t', h', w' latent frames, height and width):
        mean:   (b, c, t', h', w') float32
        logvar: (b, c, t', h', w') float32, clamped to [-30, 20] on construction
    """

    mean: Tensor
    logvar: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "logvar", self.logvar.clamp(*LOGVAR_RANGE))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents (b, c, t', h', w') by reparametrisation, so that gradients reach mean and logvar.

        The generator may be of another device than the latents: one of the CPU gives the same noise on every machine.
        """
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        """The most likely latents (b, c, t', h', w'): the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """Divergence from the standard normal in nats, for each latent value: (b, c, t', h', w'), not reduced."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

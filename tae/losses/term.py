"""What every term of the objective has in common."""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError


class Output(Protocol):
    """What the terms read of an autoencoder's output (b batch, t frames, h height, w width; c, t', h', w' latents)."""

    @property
    def reconstruction(self) -> Tensor:
        """(b, 3, t, h, w) in [-1, 1]."""

    @property
    def posterior(self) -> DiagonalGaussian:
        """Of (b, c, t', h', w') latents."""

    @property
    def latents(self) -> Tensor:
        """(b, c, t', h', w'): what was decoded."""


@dataclass(frozen=True)
class Context:
    """What a term may look at.

    clip:    (b, 3, t, h, w) in [-1, 1]: what the reconstruction is compared with
    output:  the model's
    model:   the autoencoder
    step:    of the training, counted in updates of the autoencoder
    encoded: (b, 3, t, h, w) in [-1, 1]: what went into the model, which is `clip` (None) unless the step decodes transformed
             latents (`tae.losses.Equivariance`)
    """

    clip: Tensor
    output: Output
    model: nn.Module
    step: int
    encoded: Tensor | None = None

    @property
    def source(self) -> Tensor:
        """What the latents are of."""
        return self.clip if self.encoded is None else self.encoded


class Term(Protocol):
    """One term of the objective: a float32 scalar, unweighted; it is called only where its weight is above 0.

    A term may say `uses_reconstruction = False` if it looks at posterior and latents alone, and `is_distance = True` if it
    is part of the distance that a learned scale divides (`Reconstruction.learned_scale`), and `needs_variance = True` if it
    means nothing for an encoder that gives latents alone.
    """

    weight: float

    def __call__(self, context: Context) -> Tensor: ...


def check_weight(name: str, weight: float) -> float:
    """Return the weight of the term `name`, or raise UserError where it is not a finite number of 0 or more."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise UserError(f"weight={weight} of {name} is not a weight: give a finite number >= 0 (0 turns the term off).")
    return float(weight)

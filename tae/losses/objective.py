"""The objective as a weighted sum of its terms."""

import torch
from torch import Tensor

from tae.losses.kl import KL
from tae.losses.outlier import OutlierPenalty, outlier_rate
from tae.losses.perceptual import Perceptual
from tae.losses.reconstruction import Reconstruction
from tae.losses.term import Output, Term
from tae.runtime.errors import UserError


class AutoencoderLoss:
    """Weighted sum of the four terms; one whose weight is 0 is not computed.

    Not an nn.Module: no term has anything to train or to save.
    """

    def __init__(self, reconstruction: Reconstruction, perceptual: Perceptual, kl: KL, opl: OutlierPenalty) -> None:
        terms: dict[str, Term] = {"reconstruction": reconstruction, "perceptual": perceptual, "kl": kl, "opl": opl}
        self.terms = {name: term for name, term in terms.items() if term.weight > 0}
        if not self.terms:
            raise UserError(
                "Every loss weight is 0, so there is nothing to train. "
                "Give at least one of loss.reconstruction.weight, loss.perceptual.weight, loss.kl.weight, "
                "loss.opl.weight a value above 0."
            )

    @property
    def uses_reconstruction(self) -> bool:
        """Whether any term gives the decoder a gradient."""
        return any(getattr(term, "uses_reconstruction", True) for term in self.terms.values())

    def __call__(self, clip: Tensor, out: Output) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective and its parts.

        Shapes:
            clip:    (b, 3, t, h, w) in [-1, 1]
            out:     the autoencoder's reconstruction, posterior and latents of this clip
            returns: total () float32 with gradient; {term: () float32}, unweighted and detached, for terms with a
                     weight, and `outlier_rate`, always: a run without the penalty is what one compares with
        """
        values = {name: term(clip, out) for name, term in self.terms.items()}
        total = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        logged = {name: value.detach() for name, value in values.items()}
        return total, {**logged, "outlier_rate": outlier_rate(out.latents)}

"""The objective: a weighted sum of terms."""

import torch
from torch import Tensor

from tae.losses.outlier import outlier_rate
from tae.losses.term import Context, Term, check_weight
from tae.runtime.errors import UserError

# What a training step logs beside its terms.
RESERVED = (
    *(
        "loss",
        "outlier_rate",
        "psnr",
        "gradient_norm",
        "adversarial",
        "adversarial_weight",
        "logits_real",
        "logits_fake",
    ),
    *("discriminator_loss", "discriminator_accuracy", "discriminator_gradient_norm"),
)


class Objective:
    """Weighted sum of any terms by name; one whose weight is 0, or that is None, is not computed.

    Not an nn.Module: no term has anything to train or to save.

    Raises:
        UserError: a term is none, its name or weight is not allowed, or there is nothing to train.
    """

    def __init__(self, **terms: Term | None) -> None:
        given = {name: check_term(name, term) for name, term in terms.items() if term is not None}
        self.terms = {name: term for name, term in given.items() if term.weight > 0}
        if not self.terms:
            weights = ", ".join(f"loss.{name}.weight" for name in given) or "loss.reconstruction.weight"
            raise UserError(
                f"Every loss weight is 0, so there is nothing to train. Give one of {weights} a value above 0."
            )

    @property
    def uses_reconstruction(self) -> bool:
        """Whether any term gives the decoder a gradient."""
        return any(getattr(term, "uses_reconstruction", True) for term in self.terms.values())

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective and its parts.

        Returns:
            total () float32 with gradient; {term: () float32}, unweighted and detached, for terms with a weight, and
            `outlier_rate`, always: a run without the penalty is what one compares with.
        """
        values = {name: term(context) for name, term in self.terms.items()}
        total = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        logged = {name: value.detach() for name, value in values.items()}
        return total, {**logged, "outlier_rate": outlier_rate(context.output.latents)}


def check_term(name: str, term: Term) -> Term:
    """Return the term, or raise UserError where its name is taken or it is not a term with a weight."""
    if name in RESERVED:
        raise UserError(f"loss.{name}: train/{name} is logged in any case. Give the term another name.")
    if not callable(term) or not hasattr(term, "weight"):
        raise UserError(
            f"loss.{name} makes a {type(term).__name__}, which is no term: give a class whose objects have a `weight` and "
            "are called with a `tae.losses.Context`. docs/extending.md has an example."
        )
    check_weight(name, term.weight)
    return term

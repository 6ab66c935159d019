"""The objective: a weighted sum of terms."""

import torch
from torch import Tensor, nn

from tae.losses.equivariance import Equivariance, View
from tae.losses.outlier import outlier_rate
from tae.losses.term import Context, Term, check_weight
from tae.runtime.errors import UserError

# What a training step logs beside its terms.
RESERVED = (
    *(
        "loss",
        "outlier_rate",
        "psnr",
        "log_scale",
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

    Not an nn.Module: what terms load is neither trained nor saved. What is trained is in `parameters`.

    Raises:
        UserError: a term is none, its name or weight is not allowed, or there is nothing to train.
    """

    def __init__(self, **terms: Term | None) -> None:
        given = {name: check_term(name, term) for name, term in terms.items() if term is not None}
        active = {name: term for name, term in given.items() if term.weight > 0}
        self.views = {name: term for name, term in active.items() if isinstance(term, Equivariance) and term.replaces}
        self.terms = {name: term for name, term in active.items() if name not in self.views}
        scales = [getattr(term, "log_scale", None) for term in self.terms.values()]
        self.log_scale: nn.Parameter | None = next((scale for scale in scales if scale is not None), None)
        if not self.terms:
            weights = ", ".join(f"loss.{name}.weight" for name in given) or "loss.reconstruction.weight"
            raise UserError(
                f"Every loss weight is 0, so there is nothing to train. Give one of {weights} a value above 0."
            )
        if self.views and not self.uses_reconstruction:
            raise UserError(
                f"loss.{next(iter(self.views))}.mode=replace transforms what is decoded, which no term with a weight looks "
                "at: give loss.reconstruction.weight a value above 0."
            )

    @property
    def uses_reconstruction(self) -> bool:
        """Whether any term gives the decoder a gradient."""
        return any(getattr(term, "uses_reconstruction", True) for term in self.terms.values())

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the model."""
        return [] if self.log_scale is None else [self.log_scale]

    def draw_view(self, step: int) -> View | None:
        """A transform of a step's latents and of the clip that they decode to, None for a plain step."""
        views = [term.view_of_step(step) for term in self.views.values()]
        return views[0] if views else None

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective and its parts.

        Returns:
            total () float32 with gradient; {term: () float32}, unweighted and detached, for terms with a weight, and
            `outlier_rate`, always: a run without the penalty is what one compares with.
        """
        values = {name: term(context) for name, term in self.terms.items()}
        weighted = {name: self.terms[name].weight * value for name, value in values.items()}
        logged = {name: value.detach() for name, value in values.items()}
        if self.log_scale is not None:
            distances = [name for name in weighted if getattr(self.terms[name], "is_distance", False)]
            weighted |= {name: weighted[name] * torch.exp(-self.log_scale) for name in distances}
            weighted["log_scale"] = self.log_scale
            logged["log_scale"] = self.log_scale.detach().clone()
        total = torch.stack(list(weighted.values())).sum()
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

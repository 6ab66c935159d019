"""Distance between the features of two decoders, where one is distilled from the other."""

import torch
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.model.distillation import Distillation, DistilledOutput
from tae.runtime.annotations import Weight
from tae.runtime.errors import UserError


class FeatureMatching:
    """Mean over two resolutions of mean |p - f| / mean |f|: f the teacher's features, p predicted from the tiny decoder's.

    The prediction is a 1x1 convolution that is trained with it. Divided by the size of what it predicts, one weight serves
    teachers of any scale, and predicting nothing costs 1. After Turbo-VAED (arXiv 2508.09136), which distils decoders with
    aligned features.

    Args:
        weight: factor in the objective; 0 turns the term off. Only of use to a distilled decoder (`model=tiny_decoder`).
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = check_weight("features", weight)

    def __call__(self, context: Context) -> Tensor:
        model, output = context.model, context.output
        if not isinstance(model, Distillation) or not isinstance(output, DistilledOutput):
            raise UserError(
                "loss.features compares a tiny decoder with its teacher: set its weight to 0 for other models."
            )
        pairs = model.feature_pairs(output)  # under autocast, as the features were computed
        with torch.autocast(context.clip.device.type, enabled=False):
            return torch.stack([relative_distance(own.float(), their.float()) for own, their in pairs]).mean()


def relative_distance(own: Tensor, their: Tensor) -> Tensor:
    """mean |own - their| / mean |their|: ()"""
    return (own - their).abs().mean() / their.abs().mean()

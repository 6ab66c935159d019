"""The training objective: small terms, each tested by itself, and their weighted sum."""

from tae.losses.kl import KL
from tae.losses.objective import Objective
from tae.losses.outlier import OutlierPenalty, outlier_rate
from tae.losses.perceptual import Perceptual
from tae.losses.reconstruction import Reconstruction
from tae.losses.term import Context, check_weight

__all__ = [
    "KL",
    "Context",
    "Objective",
    "OutlierPenalty",
    "Perceptual",
    "Reconstruction",
    "check_weight",
    "outlier_rate",
]

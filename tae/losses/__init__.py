"""The training objective: small terms, each tested by itself, and their weighted sum."""

from tae.losses.kl import KL
from tae.losses.objective import AutoencoderLoss
from tae.losses.outlier import OutlierPenalty, outlier_rate
from tae.losses.perceptual import Perceptual
from tae.losses.reconstruction import Reconstruction

__all__ = ["KL", "AutoencoderLoss", "OutlierPenalty", "Perceptual", "Reconstruction", "outlier_rate"]

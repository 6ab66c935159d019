"""The training objective: small terms, each tested by itself, and their weighted sum."""

from tae.losses.equivariance import Equivariance
from tae.losses.features import FeatureMatching
from tae.losses.kl import KL
from tae.losses.local_correlation import LocalCorrelation
from tae.losses.objective import Objective
from tae.losses.outlier import OutlierPenalty, outlier_rate
from tae.losses.perceptual import Perceptual
from tae.losses.reconstruction import Reconstruction
from tae.losses.spectrum import Spectrum
from tae.losses.temporal import Temporal
from tae.losses.term import Context, check_weight
from tae.losses.wavelet import Wavelet

__all__ = [
    "KL",
    "Context",
    "Equivariance",
    "FeatureMatching",
    "LocalCorrelation",
    "Objective",
    "OutlierPenalty",
    "Perceptual",
    "Reconstruction",
    "Spectrum",
    "Temporal",
    "Wavelet",
    "check_weight",
    "outlier_rate",
]

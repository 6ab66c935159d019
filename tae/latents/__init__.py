"""Latents on disk: writing, reading, statistics. Importing this package needs no more than `import tae` does."""

from tae.latents.dataset import LatentDataset
from tae.latents.sampler import SizeBatchSampler
from tae.latents.stats import LatentStats, Scaling

__all__ = ["LatentDataset", "LatentStats", "Scaling", "SizeBatchSampler"]

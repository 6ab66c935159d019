"""Statistics of latents: `latent_stats.json`, and scaling by them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.paths import to_path

STATS = "latent_stats.json"
STATS_VERSION = 1


@dataclass(frozen=True)
class LatentStats:
    """How the latents of a folder are distributed: the content of `latent_stats.json`.

    Everything is about samples of the posteriors, `mean + std * noise`, and exact: the noise's part is known, not drawn.

    mean, std:     of each channel, over all positions of all latent frames
    posterior_std: of each channel, the noise's part of `std` (the root of the mean variance of the posteriors)
    shift, scale:  one number each: `(latents - shift) * scale` has mean 0 and variance 1 over all channels together. What
                   diffusers calls `shift_factor` and `scaling_factor`
    outlier_rate:  share of positions z of the means with ||z - m|| > 3 ||s||, m and s those of its latent frame
    checkpoint:    of the model: {"path", "sha256", "encoder"}; "encoder" is the SHA-256 of what the latents depend on
    """

    num_clips: int
    num_latent_frames: int
    num_positions: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    posterior_std: tuple[float, ...]
    shift: float
    scale: float
    outlier_rate: float
    checkpoint: Mapping[str, Any]

    @property
    def conventions(self) -> dict[str, Any]:
        """What diffusers' configs call these numbers: of all channels together, and of each."""
        together = {"scaling_factor": self.scale, "shift_factor": self.shift}
        return together | {"latents_mean": list(self.mean), "latents_std": list(self.std)}

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read `latent_stats.json` of a folder.

        Raises:
            UserError: there is none, or it is something else.
        """
        path = to_path(folder) / STATS
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != STATS_VERSION:
                raise ValueError("another version")
            fields: dict[str, Any] = {k: tuple(item) if isinstance(item, list) else item for k, item in content.items()}
            stats = cls(**fields)
        except FileNotFoundError as error:
            raise UserError(
                f"{path} is not there: give a folder that `python -m tae.encode` has finished (the same command resumes)."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be read as statistics of latents ({error!r}): encode again.") from error
        return stats

    def write(self, folder: str | Path) -> Path:
        """Write `latent_stats.json` into a folder."""
        path = to_path(folder) / STATS
        write_text(path, json.dumps({"version": STATS_VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n")
        return path


@dataclass(frozen=True)
class Scaling:
    """Latents to about zero mean and unit variance, and back. `shift` and `scale` broadcast against (c, t', h', w')."""

    shift: Tensor
    scale: Tensor

    @classmethod
    def from_stats(cls, stats: LatentStats, per_channel: bool) -> Self:
        """One shift and scale for all channels, as diffusers' pipelines apply them, or one for each channel."""
        shift = torch.tensor(stats.mean if per_channel else [stats.shift])
        scale = 1 / torch.tensor(stats.std) if per_channel else torch.tensor([stats.scale])
        return cls(shift.view(-1, 1, 1, 1), scale.view(-1, 1, 1, 1))

    def apply(self, latents: Tensor) -> Tensor:
        """What a generator trains on, of (..., c, t', h', w') as the encoder gives them."""
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    def undo(self, latents: Tensor) -> Tensor:
        """What the decoder takes, of (..., c, t', h', w') as a generator gives them."""
        return latents / self.scale.to(latents) + self.shift.to(latents)

"""A Temporal Autoencoder with the interface of diffusers' autoencoders, for pipelines that take a `vae`.

diffusers itself is not needed here, and nothing of it is imported.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor, nn

from tae.latents.stats import STATS, LatentStats
from tae.model.autoencoder import TemporalAutoencoder
from tae.model.bundled import BUNDLED
from tae.model.posterior import DiagonalGaussian
from tae.model.pretrained import load_model
from tae.model.streaming import decode_stream, encode_stream
from tae.model.tiling import Tiling
from tae.runtime.paths import to_path


class EncoderOutput(NamedTuple):
    """Result of `encode`: by name or, as diffusers gives it with `return_dict=False`, by index."""

    latent_dist: DiagonalGaussian


class DecoderOutput(NamedTuple):
    """Result of `decode`, likewise."""

    sample: Tensor


class Config(dict):
    """A dict whose entries are attributes too, as diffusers' configs are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DiffusersVAE(nn.Module):
    """Our model as a diffusers pipeline sees it: `pipeline.vae = DiffusersVAE(model, stats)`.

    Shapes: video (b, 3, t, h, w) in [-1, 1] and latents (b, c, ceil(t / 8), ceil(h / 8), ceil(w / 8)); images (b, 3, h, w)
    and latents (b, c, ceil(h / 8), ceil(w / 8)), an image being a clip of one frame. Everything is in the model's dtype.

    Args:
        model: the autoencoder.
        stats: of its latents, from `tae.latents.stats.LatentStats.read`. They give `config.shift_factor` and
            `config.scaling_factor` (`(latents - shift) * scale` is what a generator sees), `config.latents_mean` and
            `config.latents_std` (one for each channel, for pipelines that scale so). None: 0, 1, and no such lists.

    Pipelines differ in which of these they apply: Stable Diffusion 3's apply shift and scale, HunyuanVideo's the scale,
    Wan's the lists. Train the generator with what its pipeline undoes.
    """

    def __init__(self, model: TemporalAutoencoder, stats: LatentStats | None = None) -> None:
        super().__init__()
        self.model = model.eval()
        self.stats = stats
        self.tiling: Tiling | None = None
        self.sliced = False
        self.temporal_compression_ratio, self.spatial_compression_ratio = model.time_factor, model.space_factor
        # As Wan's class has it; pipelines take its sum and its length for the factors of time and space.
        self.temperal_downsample = [True] * (model.space_factor.bit_length() - 1)
        architecture = model.architecture
        self.config = Config(
            architecture,
            in_channels=3,
            out_channels=3,
            z_dim=model.latent_channels,
            block_out_channels=level_widths(architecture),
            scale_factor_temporal=model.time_factor,
            scale_factor_spatial=model.space_factor,
            temporal_compression_ratio=model.time_factor,
            spatial_compression_ratio=model.space_factor,
            **({"scaling_factor": 1.0, "shift_factor": 0.0} if stats is None else stats.conventions),
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, stats: str | Path | None = None) -> Self:
        """Load what `tae.model.pretrained.load_model` loads, with the statistics of the folder `stats`.

        Without `stats`, those that `python -m tae.export latents=DIR` left beside the model are used, if there are any: in
        its folder or in its repository on the hub.
        """
        loaded = load_model(source)
        folder = stats_beside(source) if stats is None else stats
        return cls(loaded.model, None if folder is None else LatentStats.read(folder))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model of random weights with the architecture of another one's `config`, or of a config.json of ours."""
        arguments = inspect.signature(TemporalAutoencoder).parameters
        return cls(TemporalAutoencoder(**{name: value for name, value in config.items() if name in arguments}))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `from_pretrained` reads: config.json, model.safetensors and, where there are any, the statistics."""
        self.model.save_pretrained(folder)
        if self.stats is not None:
            self.stats.write(folder)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def enable_tiling(self, tiling: Tiling | None = None) -> None:
        """Work in pieces from now on, in memory that does not depend on the length: 32 frames of 512x512, unless given."""
        self.tiling = tiling or Tiling(tile_pixels=512)
        self.tiling.check(self.model.time_factor, self.model.space_factor)

    def disable_tiling(self) -> None:
        self.tiling = None

    def enable_slicing(self) -> None:
        """Work on one sample of a batch at a time from now on."""
        self.sliced = True

    def disable_slicing(self) -> None:
        self.sliced = False

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput:
        """Give `.latent_dist`, with `sample(generator)`, `mode()`, `mean` and `logvar`."""
        clip = self._as_video(x).to(self.dtype)
        parts = [self._encode(sample) for sample in (clip.split(1) if self.sliced else [clip])]
        moments = (torch.cat([getattr(part, name) for part in parts]).to(self.dtype) for name in ("mean", "logvar"))
        return EncoderOutput(DiagonalGaussian(*(moment if x.ndim == 5 else moment[:, :, 0] for moment in moments)))

    def decode(
        self,
        z: Tensor,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
        num_frames: int | None = None,
    ) -> DecoderOutput:
        """Give `.sample`, not clamped: `num_frames` of a video, by default 8 for each latent frame; one of an image.

        Raises:
            ValueError: more frames are asked for than the latents hold, or fewer than 1.
        """
        held = z.shape[2] * self.temporal_compression_ratio if z.ndim == 5 else 1
        if num_frames is not None and not 1 <= num_frames <= held:
            raise ValueError(f"num_frames={num_frames} was asked of latents that hold {held}.")
        latents = self._as_video(z).to(self.dtype)
        clip = torch.cat([self._decode(part) for part in (latents.split(1) if self.sliced else [latents])])
        return DecoderOutput(clip[:, :, :num_frames] if z.ndim == 5 else clip[:, :, 0])

    def forward(self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True) -> DecoderOutput:
        """Encode and decode; as long and large as what went in."""
        posterior = self.encode(sample).latent_dist
        clip = self.decode(posterior.sample() if sample_posterior else posterior.mode()).sample
        frames = (slice(sample.shape[2]),) if sample.ndim == 5 else ()
        return DecoderOutput(clip[(..., *frames, slice(sample.shape[-2]), slice(sample.shape[-1]))])

    def _as_video(self, x: Tensor) -> Tensor:
        return x if x.ndim == 5 else x.unsqueeze(2)

    def _encode(self, clip: Tensor) -> DiagonalGaussian:
        if self.tiling is None:
            return self.model.encode(clip)
        parts = list(encode_stream(self.model, [clip], self.tiling))
        return DiagonalGaussian(torch.cat([p.mean for p in parts], 2), torch.cat([p.logvar for p in parts], 2))

    def _decode(self, latents: Tensor) -> Tensor:
        if self.tiling is None:
            return self.model.decode(latents)
        return torch.cat(list(decode_stream(self.model, [latents], tiling=self.tiling)), dim=2)


def level_widths(architecture: Mapping[str, Any]) -> list[int]:
    """Channels of each level, one for each halving and one more, as pipelines count them.

    A network that folds begins below full resolution: the levels that it folds in place of have its first level's channels.
    """
    widths = [architecture["base_channels"] * multiplier for multiplier in architecture["channel_multipliers"]]
    return [widths[0]] * architecture.get("folds", 0) + widths


def stats_beside(source: str | Path) -> Path | None:
    """The folder of the statistics that belong to a model which could be loaded; None where it has none."""
    path = BUNDLED.get(str(source), to_path(source))
    if path.exists():
        return path if (path / STATS).is_file() else None
    try:
        return Path(hf_hub_download(str(source), STATS)).parent
    except EntryNotFoundError:
        return None

"""Autoencoders of other authors, through diffusers, evaluated beside ours: the same clips, protocol, table and page.

`ckpt=diffusers:CLASS:SOURCE`. Each is used as its authors publish it: its own `encode`, the mode of its posterior, its own
`decode`. Normalisation of latents, which a generator needs, plays no part in reconstruction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.paths import to_path

PEER_PREFIX = "diffusers:"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


class Factors(NamedTuple):
    """What an architecture takes: `time` k + 1 frames (any number where it sees single frames), multiples of `space`."""

    time: int | None
    space: int


# The closed list: classes whose rules are written here and tested, each read from the model's own config.
def _wan(config: Mapping[str, Any]) -> Factors:
    return Factors(config["scale_factor_temporal"], config["scale_factor_spatial"])


def _by_ratio(config: Mapping[str, Any]) -> Factors:
    return Factors(config["temporal_compression_ratio"], config["spatial_compression_ratio"])


def _cogvideox(config: Mapping[str, Any]) -> Factors:
    return Factors(int(config["temporal_compression_ratio"]), _halvings(config))


def _ltx(config: Mapping[str, Any]) -> Factors:
    """Patches, then a factor of 2 in time and space for each level that scales; newer configs state the products."""
    levels = 2 ** sum(config["spatio_temporal_scaling"])
    stride = config["temporal_compression_ratio"] or config["patch_size_t"] * levels
    return Factors(stride, config["spatial_compression_ratio"] or config["patch_size"] * levels)


def _image(config: Mapping[str, Any]) -> Factors:
    return Factors(None, _halvings(config))


def _halvings(config: Mapping[str, Any]) -> int:
    return 2 ** (len(config["block_out_channels"]) - 1)


FACTORS = {
    "AutoencoderKL": _image,
    "AutoencoderKLCogVideoX": _cogvideox,
    "AutoencoderKLCosmos": _by_ratio,
    "AutoencoderKLHunyuanVideo": _by_ratio,
    "AutoencoderKLLTXVideo": _ltx,
    "AutoencoderKLWan": _wan,
}


class OtherOutput(NamedTuple):
    """As of our own: the reconstruction, like the clip that went in; the posterior; the latents that were decoded."""

    reconstruction: Tensor
    posterior: DiagonalGaussian
    latents: Tensor


class DiffusersAutoencoder(nn.Module):
    """An autoencoder of diffusers with the one method that the protocol needs.

    Clips that do not fit the architecture are padded at the end by repeating the last frame, row and column, and what comes
    back is trimmed; an image autoencoder sees one frame at a time.

    Args:
        vae: an instance of a class in `FACTORS`.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.name = type(vae).__name__
        self.factors = FACTORS[self.name](vae.config)
        self.time_factor, self.space_factor = self.factors.time or 1, self.factors.space

    def forward(self, clip: Tensor, sample_posterior: bool = False) -> OtherOutput:
        """Encode and decode (b, 3, t, h, w) in [-1, 1]."""
        posterior = self.encode(clip)
        latents = posterior.sample() if sample_posterior else posterior.mode()
        reconstruction = self.decode(latents, num_frames=clip.shape[2], size=(clip.shape[3], clip.shape[4]))
        return OtherOutput(reconstruction, posterior, latents)

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The posterior of (b, 3, t, h, w) in [-1, 1], padded where it does not fit; (b, c, t', h', w')."""
        padded = self.padded_size(*clip.shape[2:])
        # Replication in the order width, height, frames, as F.pad counts from the last axis.
        reach = [
            n for want, have in zip(reversed(padded), reversed(clip.shape[2:]), strict=True) for n in (0, want - have)
        ]
        x = F.pad(clip, reach, mode="replicate") if any(reach) else clip
        if self.factors.time is not None:
            return DiagonalGaussian(*self._encode(x))
        return DiagonalGaussian(*(torch.stack(parts, 2) for parts in zip(*map(self._encode, x.unbind(2)), strict=True)))

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of (b, c, t', h', w'), from its start and upper left as much as is asked for."""
        if self.factors.time is not None:
            clip = self._decode(latents)
        else:
            clip = torch.stack([self._decode(image) for image in latents.unbind(2)], dim=2)
        height, width = size or clip.shape[3:]
        return clip[:, :, :num_frames, :height, :width]

    def padded_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The smallest size that the architecture takes and that holds this one."""
        time, space = self.factors
        if time is not None:
            frames = math.ceil((frames - 1) / time) * time + 1
        return frames, math.ceil(height / space) * space, math.ceil(width / space) * space

    def about_input(self, frames: int, height: int, width: int) -> str:
        """In words, what the architecture takes and what was done to clips of this size."""
        time, space = self.factors
        count = "one frame at a time" if time is None else f"{time}k+1 frames"
        rule = f"takes {count} in multiples of {space} pixels"
        padded = self.padded_size(frames, height, width)
        if padded == (frames, height, width):
            return f"{rule}; the clips fit as they are"
        return (
            f"{rule}; clips of {frames} frames {height}x{width} were padded to {padded[0]} frames {padded[1]}x{padded[2]} "
            "by repeating the last frame, row and column, and trimmed after decoding"
        )

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance; none (-inf) where the posterior has no noise, as in Cosmos."""
        posterior = self.vae.encode(x).latent_dist
        mean = posterior.mode()
        return mean, getattr(posterior, "logvar", torch.full_like(mean, -torch.inf))

    def _decode(self, latents: Tensor) -> Tensor:
        if getattr(self.vae.config, "timestep_conditioning", False):
            # LTX-Video's newer decoders also denoise; at time 0 they only decode, which is their pipeline's default.
            return self.vae.decode(latents, temb=latents.new_zeros(len(latents))).sample
        return self.vae.decode(latents).sample


@dataclass(frozen=True)
class OtherModel:
    """As `tae.model.pretrained.LoadedModel`; there never is a training config of ours."""

    model: DiffusersAutoencoder
    source: str
    sha256: str | None
    config: None = None


def is_other(source: str) -> bool:
    return source.startswith(PEER_PREFIX)


def load_other(source: str) -> OtherModel:
    """Load `diffusers:CLASS:SOURCE` in evaluation mode.

    Args:
        source: CLASS is one of `FACTORS`; SOURCE a local folder with config.json and safetensors (or one whose `vae`
            subfolder has them), or OWNER/NAME or OWNER/NAME/SUBFOLDER on the hub.

    Raises:
        UserError: another class, no diffusers, no such model, or weights that do not fit it whole.
    """
    _, name, place = (*source.split(":", 2), "", "")[:3]
    if name not in FACTORS or not place:
        raise UserError(
            f"ckpt={source}: give diffusers:CLASS:SOURCE, where SOURCE is a folder or OWNER/NAME[/SUBFOLDER] on the hub and "
            f"CLASS one of {', '.join(FACTORS)}."
        )
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"ckpt={source} needs the package diffusers: pip install diffusers.") from error
    from huggingface_hub.errors import HFValidationError

    folder, arguments = _locate(place)
    arguments |= {"use_safetensors": True, "low_cpu_mem_usage": False, "output_loading_info": True}
    kind = getattr(diffusers, name)
    try:
        stated = kind.load_config(str(folder), subfolder=arguments.get("subfolder")).get("_class_name", name)
        if stated != name:
            raise UserError(f"ckpt={source}: its config.json is of {stated}. Give diffusers:{stated}:{place}.")
        vae, info = kind.from_pretrained(str(folder), **arguments)
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"ckpt={source} cannot be loaded: {' '.join(str(error).split())[:300]} A folder "
            f"needs config.json and {WEIGHTS_FILE}."
        ) from error
    unfit = [*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if unfit:
        raise UserError(
            f"ckpt={source}: {len(unfit)} parameters of its weights and its config.json do not fit together, first "
            f"{sorted(unfit)[0]}. A model that is filled in part would be measured for what it is not."
        )
    weights = Path(folder) / arguments.get("subfolder", "") / WEIGHTS_FILE
    return OtherModel(DiffusersAutoencoder(vae.eval()), source, file_sha256(weights) if weights.is_file() else None)


def _locate(place: str) -> tuple[str | Path, dict[str, Any]]:
    """Folder or repository, and the arguments that name its subfolder."""
    folder = to_path(place)
    if folder.is_dir():
        inside = "vae" if not (folder / "config.json").exists() and (folder / "vae" / "config.json").exists() else None
        return folder, {"subfolder": inside} if inside else {}
    owner, _, rest = place.partition("/")
    name, _, subfolder = rest.partition("/")
    if place.startswith((".", "/", "~")) or not name:
        raise UserError(f"{place}: no such folder, and not OWNER/NAME[/SUBFOLDER] of the hub.")
    return f"{owner}/{name}", {"subfolder": subfolder} if subfolder else {}

"""An autoencoder of diffusers with the interface of ours, so that it is trained, measured and planned by the same code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.model.checks import MAX_BLOCKS, kept_extents
from tae.model.corruption import LatentCorruption
from tae.model.diffusers.families import FAMILIES
from tae.model.interface import VideoAutoencoder
from tae.model.memory_format import as_clip, as_frames
from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError

# What classes of diffusers raise for arguments and weights that do not fit them: they check little.
REFUSALS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)


class DiffusersAutoencoder(VideoAutoencoder):
    """An autoencoder of diffusers, used as its authors publish it: its own `encode` and its own `decode`.

    Clips that do not fit the architecture are padded at the end by repeating the last frame, row and column, and what comes
    back is trimmed; an image autoencoder sees single frames. Normalisation of latents, which a generator needs, plays no
    part in reconstruction.

    Args:
        vae: an instance of a class in `tae.model.diffusers.families.FAMILIES`.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.name = type(vae).__name__
        self.family = FAMILIES[self.name]
        self.family.prepare(vae)
        self.grid = self.family.grid(vae)
        self.time_factor, self.space_factor = self.grid.time_factor, self.grid.space_factor
        self.is_gaussian = self.family.is_gaussian
        self.latent_channels = next(
            vae.config[key] for key in ("latent_channels", "z_dim", "z_channels") if key in vae.config
        )
        self.architecture = {"class_name": self.name, "config": plain_config(vae.config)}
        self.encoder_parts = self._present("encoder", "quant_conv")
        self.decoder_parts = self._present("post_quant_conv", "decoder")
        self.corruption: LatentCorruption | None = None

    @classmethod
    def from_config(cls, class_name: str, config: Mapping[str, Any]) -> Self:
        """An instance of random weights.

        Args:
            class_name: one of `FAMILIES`.
            config: arguments of that class; what is left out is its default.

        Raises:
            UserError: another class, no diffusers, or arguments that the class does not take.
        """
        kind = diffusers_class(class_name)
        check_counts(config)
        try:
            return cls(kind(**config))
        except REFUSALS as error:
            raise UserError(f"config={dict(config)} makes no {class_name}: {error}") from error

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """The posterior of (b, 3, t, h, w) in [-1, 1], padded where it does not fit; (b, c, t', h', w') in float32."""
        x = self.padded(clip)
        if self.family.images_only:
            parts = self.family.encode(self.vae, as_frames(x))
            mean, logvar = (None if part is None else as_clip(part, len(clip)) for part in parts)
        else:
            mean, logvar = self.family.encode(self.vae, x)
        assert mean is not None
        mean = mean.float()
        return DiagonalGaussian(mean, torch.full_like(mean, -torch.inf) if logvar is None else logvar.float())

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """The clip of (b, c, t', h', w'), from its start and upper left as much as is asked for; not clamped.

        Raises:
            ValueError: more is asked for than there is, or nothing.
        """
        latents = latents.to(self.vae.dtype)
        if self.family.images_only:
            clip = as_clip(self.family.decode(self.vae, as_frames(latents)), len(latents))
        else:
            clip = self.family.decode(self.vae, latents)
        t, h, w = clip.shape[2:]
        frames, height, width = kept_extents((t, h, w), num_frames, size)
        return clip[:, :, :frames, :height, :width]

    def padded(self, clip: Tensor) -> Tensor:
        """The clip with its last frame, row and column repeated up to the next size that the architecture takes."""
        sizes = zip(self.grid.padded(*clip.shape[2:]), clip.shape[2:], strict=True)
        # In the order width, height, frames, as F.pad counts from the last axis.
        reach = [n for want, have in reversed(list(sizes)) for n in (0, want - have)]
        return F.pad(clip, reach, mode="replicate") if any(reach) else clip

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        axes = ((self.grid.frames, num_frames), (self.grid.height, height), (self.grid.width, width))
        frames, rows, columns = (axis.num_latents(length) for axis, length in axes)
        return self.latent_channels, frames, rows, columns

    def decoder_features(self, latents: Tensor) -> list[Tensor]:
        """What the middle and the first level of the decoder give of latents (b, c, t', h', w'): (b, c', t, h, w) each.

        A decoder that works through a clip part by part gives them part by part, and they are joined along time.

        Raises:
            UserError: the decoder has no such parts, or what they give is not of frames.
        """
        decoder = self.vae.decoder
        parts = [getattr(decoder, "mid_block", None), *list(getattr(decoder, "up_blocks", ()))[:1]]
        given: list[list[Tensor]] = [[] for part in parts if part is not None]
        hooks = [
            part.register_forward_hook(lambda module, args, out, kept=kept: kept.append(first_of(out)))
            for part, kept in zip([part for part in parts if part is not None], given, strict=True)
        ]
        try:
            self.decode(latents)
        finally:
            for hook in hooks:
                hook.remove()
        if self.family.images_only:
            given = [[as_clip(out, len(latents)) for out in kept] for kept in given]
        if not given or any(out.ndim != 5 for kept in given for out in kept) or not all(given):
            raise UserError(f"{self.name} shows no features of its decoder: set loss.features.weight=0 to distil it.")
        return [torch.cat(kept, 2) for kept in given]

    @property
    def last_layer(self) -> Tensor:
        """The weight of `conv_out` or `proj_out`, where it is trained; else the last one of the decoder that is."""
        decoder = self.vae.decoder
        last = getattr(decoder, "conv_out", None) or decoder.proj_out
        for part in (last, self.decoding_modules, self):
            if trained := [p for p in part.parameters() if p.requires_grad and p.ndim > 1]:
                return trained[-1]
        raise RuntimeError("nothing of this model is trained")

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass, as the class itself does it."""
        return bool(self.vae.is_gradient_checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        if on and not self.vae._supports_gradient_checkpointing:
            raise UserError(f"gradient_checkpointing=true: {self.name} of diffusers has none. Set it to false.")
        if on:
            self.vae.enable_gradient_checkpointing()
        elif self.gradient_checkpointing:
            self.vae.disable_gradient_checkpointing()

    @property
    def rule(self) -> str:
        """In words, the sizes that it takes."""
        grid = self.grid
        count = "one frame at a time" if self.family.images_only else f"{grid.frames} frames"
        space = str(grid.height) if grid.height == grid.width else f"{grid.height} by {grid.width}"
        return f"{count} in {space} pixels"

    def about_input(self, num_frames: int, height: int, width: int) -> str:
        rule, padded = f"takes {self.rule}", self.grid.padded(num_frames, height, width)
        if padded == (num_frames, height, width):
            return f"{rule}; the clips fit as they are"
        return (
            f"{rule}; clips of {num_frames} frames {height}x{width} were padded to {padded[0]} frames "
            f"{padded[1]}x{padded[2]} by repeating the last frame, row and column, and trimmed after decoding"
        )

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the folder of diffusers: config.json and safetensors."""
        self.vae.save_pretrained(save_directory)

    def _present(self, *names: str) -> tuple[str, ...]:
        """Those submodules that this class has."""
        return tuple(f"vae.{name}" for name in names if isinstance(getattr(self.vae, name, None), nn.Module))


def first_of(out: Any) -> Any:
    """What a block gives, without the caches that some return beside it."""
    return out[0] if isinstance(out, tuple) else out


def diffusers_class(name: str) -> Any:
    """The class of diffusers, which is imported for it.

    Raises:
        UserError: it is not in the closed list, or not in the diffusers that is installed, if any is.
    """
    if name not in FAMILIES:
        raise UserError(f"class_name={name} is unknown. Choose one of: {', '.join(FAMILIES)}.")
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"class_name={name} needs the package diffusers: pip install diffusers.") from error
    with torch.device("cpu"):  # the module's constants stay where they are made: a first model may be built on meta
        found = getattr(diffusers, name, None)
    if found is None:
        raise UserError(f"class_name={name}: diffusers {diffusers.__version__} has no such class; install a newer one.")
    return found


def check_counts(config: Mapping[str, Any]) -> None:
    """Refuse a config of so many layers that to build them, even without weights, would take for ever.

    Raises:
        UserError: it is one.
    """
    for name, value in config.items():
        counts = value if isinstance(value, list | tuple) else [value]
        if ("layers" in name or "blocks" in name) and any(isinstance(n, int) and n > MAX_BLOCKS for n in counts):
            raise UserError(f"{name}={value} is beyond all bounds: at most {MAX_BLOCKS}.")


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A class's arguments as JSON has them, without diffusers' own notes."""
    return {name: value for name, value in json.loads(json.dumps(dict(config))).items() if not name.startswith("_")}

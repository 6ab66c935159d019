"""Checks of architectures, clips and latents."""

import math
from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from tae.model.layers import GROUP_NORM_MODES
from tae.runtime.errors import UserError

MAX_LEVELS, MAX_BLOCKS, MAX_PARAMETERS = 8, 64, 10**10  # a config.json that asks for more is a mistake or an attack
SHOWN_DIFFERENCES = 4


def check_architecture(
    widths: Sequence[int], latent_channels: int, encoder_blocks: int, decoder_blocks: int, groups: int, group_norm: str
) -> None:
    """Refuse what cannot be built, before building it; the sizes may come from a stranger's file."""
    sizes = (*widths, latent_channels, encoder_blocks, decoder_blocks, groups)
    if any(not isinstance(size, int) for size in sizes):
        raise UserError(f"The model's sizes must be whole numbers; got {list(sizes)}.")
    if group_norm not in GROUP_NORM_MODES:
        raise UserError(f"group_norm={group_norm!r} is unknown. Choose one of: {', '.join(GROUP_NORM_MODES)}.")
    if not widths or min(*widths, latent_channels, encoder_blocks, decoder_blocks, groups) < 1:
        raise UserError(
            f"The model's sizes must be positive integers; got levels of {list(widths)} channels, {latent_channels} "
            f"latent channels, {encoder_blocks} and {decoder_blocks} blocks, {groups} groups."
        )
    if any(width % groups for width in widths):
        raise UserError(
            f"norm_groups={groups} does not divide the channels of every level, {list(widths)}. "
            f"Choose a divisor of {math.gcd(*widths)}."
        )
    blocks = encoder_blocks + decoder_blocks + 2
    parameters = (
        24 * blocks * sum(width**2 for width in (*widths, latent_channels))
    )  # two convolutions of 9 + 3 taps in each block
    if len(widths) > MAX_LEVELS or blocks > MAX_BLOCKS or parameters > MAX_PARAMETERS:
        raise UserError(
            f"A model of {len(widths)} levels, {blocks} blocks a level and about {parameters:.1e} parameters is beyond all "
            f"bounds: at most {MAX_LEVELS}, {MAX_BLOCKS} and {MAX_PARAMETERS:.0e}."
        )


def check_clip(clip: Tensor, smallest: int) -> None:
    """Refuse what is not a clip, with the way to make it one."""
    if clip.ndim != 5 or clip.shape[1] != 3:
        hint = " For images add a time axis: x[:, :, None]." if clip.ndim == 4 else ""
        raise ValueError(f"encode() takes a clip (b, 3, t, h, w); got {tuple(clip.shape)}.{hint}")
    if not clip.is_floating_point():
        raise TypeError(f"encode() takes values in [-1, 1]; got {clip.dtype}. Use tae.frames_to_clip on frames.")
    if clip.shape[2] < 1 or min(clip.shape[3:]) < smallest:
        raise ValueError(f"encode() takes t >= 1 and h, w >= {smallest}; got (t, h, w) = {tuple(clip.shape[2:])}.")


def check_latents(latents: Tensor, channels: int) -> None:
    """Refuse what is not a latent of this model."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise ValueError(f"decode() takes latents (b, {channels}, t, h, w); got {tuple(latents.shape)}.")


def differing_parameters(differences: Sequence[str]) -> str:
    """The number of parameters that differ, and the first of them, a line each."""
    shown = "\n  ".join(islice(differences, SHOWN_DIFFERENCES))
    return f"{len(differences)} parameters differ.\n  {shown}\n"

"""Checks of architectures, clips and latents."""

import math
from collections.abc import Sequence
from itertools import islice, pairwise

from torch import Tensor

from tae.model.folding import FRONTENDS
from tae.model.layers import GROUP_NORM_MODES, NORMS
from tae.model.temporal_conv import TEMPORAL_INITS, TEMPORAL_PADDINGS
from tae.runtime.errors import UserError

MAX_LEVELS, MAX_BLOCKS, MAX_PARAMETERS = 8, 64, 10**10  # a config.json that asks for more is a mistake or an attack
SHOWN_DIFFERENCES = 4
LARGEST_VALUE = 2.0  # of a clip: bicubic resampling overshoots 1
MAX_FOLDS = 3  # of pixels into channels: 1,536 channels


def check_architecture(
    widths: Sequence[int],
    latent_channels: int,
    encoder_blocks: int,
    decoder_blocks: int,
    groups: int,
    group_norm: str,
    *,
    norm: str,
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
    if norm != "rms" and any(width % groups for width in widths):
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


def check_front(widths: Sequence[int], norm: str, frontend: str, folds: int) -> None:
    """Refuse a front end, or a normalisation, that does not exist or does not fit the levels."""
    for name, value, known in (("norm", norm, NORMS), ("frontend", frontend, tuple(FRONTENDS))):
        if value not in known:
            raise UserError(f"{name}={value!r} is unknown. Choose one of: {', '.join(known)}.")
    if not isinstance(folds, int) or not (folds == 0 if frontend == "conv" else 1 <= folds <= MAX_FOLDS):
        raise UserError(f"folds={folds} is not allowed: 0 with frontend=conv, else 1 to {MAX_FOLDS}.")
    growths = [after / before for before, after in pairwise(widths)]
    if folds and any(growth not in (1, 2, 4, 8) for growth in growths):
        raise UserError(
            f"frontend={frontend} with levels of {list(widths)} channels: each must be 1, 2, 4 or 8 times the one before."
        )


def check_temporal(init: str, padding: str) -> None:
    """Refuse temporal convolutions that do not exist."""
    for name, value, known in (
        ("temporal_init", init, TEMPORAL_INITS),
        ("temporal_padding", padding, TEMPORAL_PADDINGS),
    ):
        if value not in known:
            raise UserError(f"{name}={value!r} is unknown. Choose one of: {', '.join(known)}.")


def check_clip(clip: Tensor, smallest: int, shortest: int = 1) -> None:
    """Refuse what is not a clip, with the way to make it one.

    Args:
        smallest: height and width, in pixels.
        shortest: length, in frames.
    """
    if clip.ndim != 5 or clip.shape[1] != 3:
        hint = " For images add a time axis: x[:, :, None]." if clip.ndim == 4 else ""
        raise ValueError(f"encode() takes a clip (b, 3, t, h, w); got {tuple(clip.shape)}.{hint}")
    if not clip.is_floating_point():
        raise TypeError(f"encode() takes values in [-1, 1]; got {clip.dtype}. Use tae.frames_to_clip on frames.")
    if clip.shape[2] < shortest or min(clip.shape[3:]) < smallest:
        given = tuple(clip.shape[2:])
        raise ValueError(f"encode() takes t >= {shortest} and h, w >= {smallest}; got (t, h, w) = {given}.")


def check_range(clip: Tensor) -> None:
    """Refuse values that no clip has: of frames that were not converted, or NaN. It waits for the device."""
    if not clip.numel():
        return
    low, high = (value.item() for value in clip.aminmax())
    if not -LARGEST_VALUE <= low <= high <= LARGEST_VALUE:
        given = f"{low:.4g} to {high:.4g}"
        raise ValueError(f"A clip has values in [-1, 1]; got {given}. Use tae.frames_to_clip on frames.")


def check_latents(latents: Tensor, channels: int) -> None:
    """Refuse what is not a latent of this model."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise ValueError(f"decode() takes latents (b, {channels}, t, h, w); got {tuple(latents.shape)}.")
    if not latents.is_floating_point():
        raise TypeError(f"decode() takes floating-point latents; got {latents.dtype}.")


def differing_parameters(differences: Sequence[str]) -> str:
    """The number of parameters that differ, and the first of them, a line each."""
    shown = "\n  ".join(islice(differences, SHOWN_DIFFERENCES))
    return f"{len(differences)} parameters differ.\n  {shown}\n"


def check_kept_size(held: tuple[int, int], size: tuple[int, int] | None) -> None:
    """Refuse a height and width to keep of a decoded clip that has those that are `held`; None keeps all.

    Raises:
        ValueError: more than there are, or none.
    """
    if size is not None and any(not 1 <= want <= have for want, have in zip(size, held, strict=True)):
        raise ValueError(f"size={size} was asked for; these latents hold {held}.")


def kept_extents(
    held: tuple[int, int, int], num_frames: int | None, size: tuple[int, int] | None
) -> tuple[int, int, int]:
    """(frames, height, width) to keep of a decoded clip that has as many as are `held`; None keeps all.

    Raises:
        ValueError: more than there are, or none.
    """
    wanted = (held[0] if num_frames is None else num_frames, *(size or held[1:]))
    if any(not 1 <= want <= have for want, have in zip(wanted, held, strict=True)):
        raise ValueError(f"decode() was asked for {wanted} frames, rows, columns; these latents hold {held}.")
    return wanted

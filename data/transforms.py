"""Frames of any size to a square of the resolution. All uint8: the value range is `tae.clip`'s business."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tae.errors import UserError

Flip = Literal["time", "height", "width", "diagonal"]
MAX_ZOOM = 8.0


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training clip, one draw for all of its frames. What is left at its default changes nothing.

    Args:
        zoom: the short side is scaled to between 1 and `zoom` times the resolution before the crop.
        flips: each is done to half of the clips: backwards in "time", upside down in "height", mirrored in "width",
            rows and columns exchanged along the "diagonal".
        colour: contrast and saturation are multiplied by 1 - colour to 1 + colour, the brightness is moved by up to
            64 * colour of 255 steps and the hue turned by up to 180 * colour degrees.

    Raises:
        UserError: a value is out of its range.
    """

    zoom: float = 1.0
    flips: Sequence[Flip] = ()
    colour: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flips", tuple(self.flips))  # not a config's list, which every worker would be sent
        if not _is_number(self.zoom) or not 1 <= self.zoom <= MAX_ZOOM:
            raise UserError(f"data.augmentation.zoom={self.zoom} is not allowed: give a number from 1 to {MAX_ZOOM:g}.")
        if unknown := set(self.flips) - set(get_args(Flip)):
            raise UserError(
                f"data.augmentation.flips: {min(unknown)} is unknown. Choose from: {', '.join(get_args(Flip))}."
            )
        if not _is_number(self.colour) or not 0 <= self.colour <= 1:
            raise UserError(f"data.augmentation.colour={self.colour} is not allowed: give a number from 0 to 1.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NO_AUGMENTATION = Augmentation()


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Scale so that the shorter side becomes `size`, keeping the aspect ratio (bicubic, antialiased).

    Shapes:
        frames:  (t, h, w, 3) uint8
        returns: (t, h', w', 3) uint8 with min(h', w') == size

    The input's memory is channels-last already, so the resampling works on a view and copies nothing.
    """
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == size:
        return frames
    scaled = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    return F.interpolate(frames.movedim(-1, 1), size=scaled, mode="bicubic", antialias=True).movedim(1, -1)


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """The middle (t, size, size, 3) of (t, h, w, 3)."""
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def random_crop(frames: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """A (t, size, size, 3) part of (t, h, w, 3), the same one in every frame."""
    top, left = (int(rng.integers(side - size + 1)) for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def flip(frames: Tensor, flips: Sequence[Flip], rng: np.random.Generator) -> Tensor:
    """Each of `flips` with probability 1/2; (t, h, w, 3), square."""
    for name in flips:
        if rng.random() < 0.5:
            frames = frames.transpose(1, 2) if name == "diagonal" else frames.flip(get_args(Flip).index(name))
    return frames


def change_colours(frames: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Another contrast, saturation, hue and brightness for (t, h, w, 3) uint8: one affine map of (red, green, blue)."""
    contrast, saturation = 1 + strength * rng.uniform(-1, 1, 2)
    hue, brightness = strength * rng.uniform((-math.pi, -64), (math.pi, 64))
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(hue) * (np.eye(3) - grey) + math.sin(hue) * cross  # about the grey axis, by Rodrigues' formula
    matrix = torch.from_numpy(contrast * (grey + saturation * turn)).float()
    offset = torch.full((3,), 127.5 * (1 - contrast) + brightness)
    changed = F.conv2d(frames.movedim(-1, 1).float(), matrix[:, :, None, None], offset)  # several times as fast as `@`
    return changed.round_().clamp_(0, 255).byte().movedim(1, -1)


def to_square(
    frames: np.ndarray, size: int, rng: np.random.Generator | None, augmentation: Augmentation = NO_AUGMENTATION
) -> Tensor:
    """Short side to `size`, then a crop: the centre without a generator, a random one with it, augmented.

    Shapes:
        frames:  (t, h, w, 3) uint8
        returns: (t, size, size, 3) uint8, possibly a view of a larger picture
    """
    images = torch.from_numpy(frames)
    if rng is None:
        return centre_crop(resize_short_side(images, size), size)
    scale = rng.uniform(1, augmentation.zoom) if augmentation.zoom > 1 else 1
    square = random_crop(resize_short_side(images, round(scale * size)), size, rng)
    square = flip(square, augmentation.flips, rng)
    return change_colours(square, augmentation.colour, rng) if augmentation.colour else square

"""Frames of any size to a square or another rectangle, all uint8 (`tae.model.frame_conversion` knows the value range)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from tae.runtime.annotations import Share
from tae.runtime.schema import check_arguments

Interpolation = Literal["bicubic", "bilinear"]
Flip = Literal["time", "height", "width", "diagonal"]
MAX_ZOOM = 8.0


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training clip, one draw for all of its frames. What is left at its default changes nothing.

    Args:
        zoom: the short side is scaled to between 1 and `zoom` times the resolution before the crop, but not beyond its own
            size where that is larger than the resolution.
        flips: each is done to half of the clips: backwards in "time", upside down in "height", mirrored in "width",
            rows and columns exchanged along the "diagonal".
        colour: contrast and saturation are multiplied by 1 - colour to 1 + colour, the brightness is moved by up to
            64 * colour of 255 steps and the hue turned by up to 180 * colour degrees.

    Raises:
        UserError: a value is out of its range.
    """

    zoom: Annotated[float, Ge(1), Le(MAX_ZOOM)] = 1.0
    flips: Sequence[Flip] = ()
    colour: Share = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "flips", tuple(self.flips))  # not a config's list, which every worker would be sent
        check_arguments(Augmentation, vars(self))


NO_AUGMENTATION = Augmentation()


class Crop:
    """Makes a rectangle of every frame of one clip: scaled so that it just covers it, then cropped, augmented.

    All that is random is drawn once, here. Without a generator the crop is the centre and nothing is augmented.

    Args:
        height, width: of the frames.
        size: (height, width) of the rectangle in pixels; a number for the side of a square.
        rng: draws the crop and the augmentation.
        interpolation: of the scaling.

    Attributes:
        backwards: the clip is to start with its last frame. The order of frames is up to who reads them.
    """

    def __init__(
        self,
        height: int,
        width: int,
        size: int | tuple[int, int],
        rng: np.random.Generator | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self._interpolation = interpolation
        rows, columns = self._size = as_size(size)
        self._colours: tuple[Tensor, Tensor] | None = None
        covered = self._size
        if rng and augmentation.zoom > 1:
            # Not beyond the file's own pixels: what is scaled up to be cropped has no detail to learn.
            most = min(augmentation.zoom, max(min(height / rows, width / columns), 1.0))
            zoom = rng.uniform(1, most)
            covered = (round(zoom * rows), round(zoom * columns))
        self._scaled = covering_size(height, width, covered)
        room = (self._scaled[0] - rows, self._scaled[1] - columns)
        self._top, self._left = (int(rng.integers(side + 1)) if rng else side // 2 for side in room)
        flips = [name for name in augmentation.flips if rng and rng.random() < 0.5]
        self.backwards = "time" in flips
        self._flips = [name for name in flips if name != "time"]
        if rng and augmentation.colour:
            self._colours = draw_colours(augmentation.colour, rng)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 to (*size, 3) uint8, possibly a view of a larger picture."""
        scaled = resize(image, self._scaled, self._interpolation)
        cropped = scaled[self._top : self._top + self._size[0], self._left : self._left + self._size[1]]
        for name in self._flips:
            cropped = flip(cropped, name)
        return change_colours(cropped, *self._colours) if self._colours else cropped


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width; a number is the side of a square."""
    return (size, size) if isinstance(size, int) else size


def covering_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the same picture scaled so that it just covers a rectangle (height, width)."""
    if size[0] * width >= size[1] * height:  # the height decides
        return size[0], max(size[1], round(width * size[0] / height))
    return max(size[0], round(height * size[1] / width)), size[1]


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of the same picture whose shorter side has `short_side` pixels."""
    return covering_size(height, width, (short_side, short_side))


def resize_short_side(image: np.ndarray, size: int, interpolation: Interpolation = "bicubic") -> np.ndarray:
    """Scale so that the shorter side becomes `size`, keeping the aspect ratio (antialiased): (h, w, 3) uint8 as `resize`."""
    return resize(image, scaled_size(image.shape[0], image.shape[1], size), interpolation)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation = "bicubic") -> np.ndarray:
    """Scale to a size (antialiased).

    Shapes:
        image:   (h, w, 3) uint8
        returns: (*size, 3) uint8

    The input's memory is channels-last already, so the resampling works on a view and copies nothing.
    """
    if image.shape[:2] == size:
        return image
    planes = torch.from_numpy(image)[None].movedim(-1, 1)  # in this order: else not taken for channels-last, 3x slower
    scaled = F.interpolate(planes, size, mode=interpolation, antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()


def flip(image: np.ndarray, name: Flip) -> np.ndarray:
    """One of the flips within a picture, (h, w, 3); the diagonal one is of squares."""
    flipped = {"height": image[::-1], "width": image[:, ::-1], "diagonal": image.swapaxes(0, 1)}
    return flipped[name]


def draw_colours(strength: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Another contrast, saturation, hue and brightness as one affine map of (red, green, blue): matrix and offset."""
    contrast, saturation = 1 + strength * rng.uniform(-1, 1, 2)
    hue, brightness = strength * rng.uniform((-math.pi, -64), (math.pi, 64))
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(hue) * (np.eye(3) - grey) + math.sin(hue) * cross  # about the grey axis, by Rodrigues' formula
    matrix = torch.from_numpy(contrast * (grey + saturation * turn)).float()
    return matrix, torch.full((3,), 127.5 * (1 - contrast) + brightness)


def change_colours(image: np.ndarray, matrix: Tensor, offset: Tensor) -> np.ndarray:
    """The map of `draw_colours` applied to (h, w, 3) uint8."""
    planes = torch.from_numpy(image.astype(np.float32))[None].movedim(-1, 1)
    changed = F.conv2d(planes, matrix[:, :, None, None], offset)  # several times as fast as `@`
    return changed.round_().clamp_(0, 255).byte()[0].permute(1, 2, 0).numpy()

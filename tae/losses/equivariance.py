"""Equivariance: latents that were made smaller or turned decode to the clip that was made smaller or turned."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.term import Context, check_weight
from tae.model.interface import VideoAutoencoder
from tae.runtime.annotations import Weight
from tae.runtime.errors import UserError
from tae.runtime.schema import check_arguments

SCALES: dict[str, Sequence[float]] = {"replace": (0.25, 0.5, 0.75, 1.0), "extra": (0.5, 0.25)}


class Equivariance:
    """One of two ways to ask that T(z) decodes to T(x), T a change of size in space, perhaps with a turn.

    `mode="replace"` (EQ-VAE, arXiv 2502.09509): in a share `weight` of the steps the latents are transformed before they
    are decoded, and *everything* that looks at the reconstruction, the adversary too, compares it with the transformed
    clip. T is one of `scales` and, with `turns`, 0 to 3 quarter turns. The paper's share is 0.5; a scale of 1 without a
    turn is among the draws. Costs less than a plain step.

    `mode="extra"` (scale equivariance, arXiv 2502.14831): in every step the value is mean |D(T(z)) - T(x)|, beside all other
    terms, `weight` the paper's alpha, 0.25; it needs a second decoding, of smaller latents. The paper's distance has
    LPIPS in it too.

    Sizes are changed by averaging over areas, in pixels and in latents alike; a latent is never less than one position.
    Which T a step takes follows from PyTorch's seed, which a training sets for every batch, and the step.

    Args:
        weight: share of the steps (replace, at most 1), or factor in the objective (extra); 0 turns the term off.
        mode: "replace" or "extra".
        scales: of height and width, in (0, 1]; None: 0.25, 0.5, 0.75, 1 (replace) or 0.5, 0.25 (extra).
        turns: whether quarter turns are drawn too; None: with replace.
    """

    def __init__(
        self,
        weight: Weight,
        mode: Literal["replace", "extra"] = "replace",
        scales: Sequence[float] | None = None,
        turns: bool | None = None,
    ) -> None:
        check_arguments(Equivariance, {"mode": mode, "scales": scales, "turns": turns})
        self.weight = check_weight("equivariance", weight)
        if mode == "replace" and self.weight > 1:
            raise UserError(f"weight={weight} of equivariance is the share of steps with mode=replace: at most 1.")
        self.replaces = mode == "replace"
        self.scales = tuple(SCALES[mode] if scales is None else scales)
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise UserError(
                f"scales={list(self.scales)} of equivariance: give numbers above 0 and up to 1, such as 0.5."
            )
        self.turns = self.replaces if turns is None else turns

    def __call__(self, context: Context) -> Tensor:
        """The value of the extra term."""
        model, clip = cast(VideoAutoencoder, context.model), context.clip
        view = self.draw(numbers_of(context.step))
        decoded = model.decode(view.of_latents(context.output.latents), clip.shape[2])
        with torch.autocast(clip.device.type, enabled=False):
            return F.l1_loss(decoded.float(), view.of_clip(model, clip).float())

    def view_of_step(self, step: int) -> "View | None":
        """With replace: what a step does to its latents and its clip; None where it leaves them as they are."""
        numbers = numbers_of(step)
        return self.draw(numbers) if numbers.random() < self.weight else None

    def draw(self, numbers: random.Random) -> "View":
        return View(numbers.choice(self.scales), numbers.randrange(4) if self.turns else 0)


def numbers_of(step: int) -> random.Random:
    """Random numbers of a step, by PyTorch's seed; on the host, since they decide sizes."""
    return random.Random(f"{torch.initial_seed()} {step}")


def smallest_scale(weight: float, mode: str, scales: Sequence[float] | None) -> float:
    """The smallest scale of a term with these settings, 1 where it changes nothing that other terms look at."""
    return min(scales or SCALES[mode]) if weight and mode == "replace" else 1.0


@dataclass(frozen=True)
class View:
    """A change of size in space and a number of quarter turns."""

    scale: float
    turns: int

    def of_latents(self, latents: Tensor) -> Tensor:
        """(b, c, t', h', w') -> (b, c, t', h'', w'')"""
        return self.turn(area_resized(latents, *self.scaled(latents.shape[3], latents.shape[4])))

    def of_clip(self, model: VideoAutoencoder, clip: Tensor) -> Tensor:
        """(b, 3, t, h, w) -> (b, 3, t, 8 h'', 8 w''), what the transformed latents decode to: of the padded clip."""
        clip, factor = model.padded(clip), model.space_factor
        height, width = self.scaled(clip.shape[3] // factor, clip.shape[4] // factor)
        return self.turn(area_resized(clip, height * factor, width * factor))

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Of latents, whose size decides that of the clip."""
        return max(1, round(self.scale * height)), max(1, round(self.scale * width))

    def turn(self, values: Tensor) -> Tensor:
        return values.rot90(self.turns, (3, 4)) if self.turns else values


def area_resized(values: Tensor, height: int, width: int) -> Tensor:
    """Averages over areas: a new value is the mean over the part of the plane that it covers.

    As two matrix products, whose gradient is the same in every run on any device; `F.interpolate`'s is not.

    Shapes: (b, c, t, h, w) -> (b, c, t, height, width), float32 where the size changes
    """
    for dim, size in ((3, height), (4, width)):
        if size != values.shape[dim]:
            with torch.autocast(values.device.type, enabled=False):
                # Copied without waiting for the device: the step has no other reason to.
                matrix = area_matrix(values.shape[dim], size).to(values.device, non_blocking=True)
                values = torch.tensordot(values.float(), matrix, dims=([dim], [1])).movedim(-1, dim)
    return values


def area_matrix(size: int, new: int) -> Tensor:
    """(new, size): the share that each old place has in each new one."""
    edges = torch.arange(new + 1, dtype=torch.float64) * size / new
    place = torch.arange(size, dtype=torch.float64)
    covered = torch.minimum(edges[1:, None], place + 1) - torch.maximum(edges[:-1, None], place)
    return (covered.clamp_min(0) * new / size).float()

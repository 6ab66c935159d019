"""A training step: from a clip to the objective, and from the objective to updated weights.

`compute_loss` is the part that Lightning's automatic optimization asks of a module; `training_step` is the whole step, for
the planner and for benchmarks.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from tae.adversarial.adversary import PatchAdversary
from tae.losses.objective import Objective
from tae.losses.term import Context, Output
from tae.model.average import WeightAverage
from tae.model.frame_conversion import frames_to_clip
from tae.model.interface import VideoAutoencoder


class StepLoss(NamedTuple):
    """total: () float32 with gradient; terms: what is logged, without gradient; output: the model's; clip: what the
    reconstruction was compared with, which a view (`tae.losses.Equivariance`) has transformed."""

    total: Tensor
    terms: dict[str, Tensor]
    output: Output
    clip: Tensor


def compute_loss(
    model: VideoAutoencoder, objective: Objective, clip: Tensor, step: int = 0, adversary: PatchAdversary | None = None
) -> StepLoss:
    """Encode, sample and decode a clip (b, 3, t, h, w) in [-1, 1], and take the objective of what comes back.

    An adversary is trained on the same decoding, and its term is in the total; it is updated by its own `update`.
    """
    view = objective.draw_view(step)
    encoded = clip
    if view is None:
        output = model(clip)
    else:
        output = model(clip, transform=view.of_latents)
        clip = view.of_clip(model, clip)
    total, terms = objective(Context(clip, output, model, step, encoded))
    if adversary is not None:
        total, figures = adversary(clip, output.reconstruction, total, model.last_layer, step)
        terms |= figures
    return StepLoss(total, terms, output, clip)


def update(model: nn.Module, optimizer: Optimizer, total: Tensor, max_norm: float = 1.0) -> None:
    """Backward pass, clipping of the gradient's norm, and the optimizer's step."""
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad()


def training_step(
    model: VideoAutoencoder,
    objective: Objective,
    optimizer: Optimizer,
    frames: Tensor,
    precision: AbstractContextManager,
    average: WeightAverage | None = None,
    adversary: PatchAdversary | None = None,
    step: int = 0,
) -> None:
    """A whole step, as the Trainer takes it.

    Args:
        frames: (b, t, h, w, 3) uint8.
        precision: what the forward pass runs in, such as torch.autocast.
        average: of the model's weights.
        adversary: trained with it, as at `step`.
    """
    clip = frames_to_clip(frames)
    with precision:
        total = compute_loss(model, objective, clip, step, adversary).total
    update(model, optimizer, total)
    if adversary is not None:
        adversary.update()
    if average is not None:
        average.update(1)

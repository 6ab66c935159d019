"""Schedules of the learning rate."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tae.runtime.annotations import AboveZero, AtLeastOne, Share


class ExtendableLambdaLR(LambdaLR):
    """A `LambdaLR` that follows its own function from the first step after a restore, whatever function the state is from.

    torch's takes the next learning rate from the saved optimizer, hence from the function of before.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, after the optimizer's state was restored."""
        super().load_state_dict(state_dict)
        factors = [function(self.last_epoch) for function in self.lr_lambdas]
        self._last_lr = [lr * factor for lr, factor in zip(self.base_lrs, factors, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def one_cycle(
    optimizer: Optimizer, total_steps: AtLeastOne, pct_start: Share, div_factor: AboveZero, final_div_factor: AboveZero
) -> ExtendableLambdaLR:
    """The 1cycle policy for the learning rate alone: up a cosine to the optimizer's, then down one.

    torch's `OneCycleLR` divides by zero for short runs, writes its own momentum over the optimizer's betas and cannot be
    made longer. Here any number of steps will do, and a run that is resumed with more of them follows the longer curve.

    Args:
        optimizer: its `lr` is the highest.
        total_steps: of the run; the last one has the lowest learning rate, and so has each after it.
        pct_start: share of the steps on the way up.
        div_factor: the highest learning rate by the first one.
        final_div_factor: the first learning rate by the last one.
    """
    top = max(pct_start * total_steps - 1, 0.0)
    bottom = max(total_steps - 1.0, top)
    first, last = 1 / div_factor, 1 / (div_factor * final_div_factor)

    def factor(step: int) -> float:
        if step < top:
            return cosine(first, 1.0, step / top)
        return cosine(1.0, last, min((step - top) / (bottom - top), 1.0)) if bottom > top else 1.0

    return ExtendableLambdaLR(optimizer, factor)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (1)."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))

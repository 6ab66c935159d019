"""Exponential moving average of weights."""

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average, in float32, of the parameters of a model that are trained.

    After update n = 1, 2, ...: `average = d * average + (1 - d) * weight` with `d = min(decay, (1 + n) / (10 + n))`, so that
    the first weights are soon forgotten (the schedule of TensorFlow's ExponentialMovingAverage with `num_updates`). A
    parameter that is not trained is its own average, and is not kept twice.

    Args:
        model: its weights now are the first average.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self._raw: dict[str, Tensor] = {}  # the model's own weights, while it has the average's

    def update(self, n: int) -> None:
        """Take in the model's weights after its n-th update, counted from 1."""
        weights = [p.detach().float() for p in self.parameters.values()]
        decay = min(self.decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - decay)

    def raw(self) -> dict[str, Tensor]:
        """The weights that are trained, whichever the model has at the moment."""
        return self._raw or {name: p.detach() for name, p in self.parameters.items()}

    def load(self, values: dict[str, Tensor]) -> None:
        """Continue with an average that was saved."""
        for name, value in self.values.items():
            value.copy_(values[name])

    def swap_in(self) -> None:
        """Give the model the average. Nothing is copied: parameters point to other memory."""
        if not self._raw:
            self._raw = {name: p.data for name, p in self.parameters.items()}
            for name, p in self.parameters.items():
                p.data = self.values[name].to(p.dtype)

    def swap_out(self) -> None:
        """Give the model its own weights again; nothing where it has them."""
        for name, weight in self._raw.items():
            self.parameters[name].data = weight
        self._raw = {}

"""Detection of a loss or a gradient that is not finite, without waiting for the device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ADVICE = (
    "Look at them, lower optimizer.lr, or use precision=fp32; then resume from the last checkpoint with resume=auto."
)


class FiniteFlag:
    """Whether a scalar is finite, copied to the host when it is made and waited for only when it is read.

    The copy is launched among the work of its step: it waits for nothing that comes after it.
    """

    def __init__(self, value: Tensor) -> None:
        # Only where an event tells that the copy has arrived may the host go on before it.
        self._finite = torch.isfinite(value).to("cpu", non_blocking=value.is_cuda)
        self._arrived = torch.cuda.Event() if value.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def __bool__(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._finite)


class StepRecord:
    """What has to be known of a step if its loss or its gradient turns out not to be finite.

    Args:
        number: of the step.
        keys: of its clips.
        loss: a scalar, wherever it was computed.
        terms: its parts.
    """

    def __init__(self, number: int, keys: Sequence[str], loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        self.number = number
        self.keys = keys
        self.terms = terms
        self.loss_is_finite = FiniteFlag(loss)
        self.gradient_is_finite: FiniteFlag | None = None  # not known before the step is made

    @property
    def not_finite(self) -> str | None:
        """What was not finite, the loss or the gradient."""
        if not self.loss_is_finite:
            return "loss"
        return "gradient" if self.gradient_is_finite is not None and not self.gradient_is_finite else None


def written(terms: Mapping[str, Tensor]) -> dict[str, str]:
    """Each term as text, since JSON has no NaN."""
    return {name: repr(value.item()) for name, value in terms.items()}

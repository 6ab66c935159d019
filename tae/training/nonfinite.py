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
    """What has to be known of a step if a loss or a gradient of it turns out not to be finite.

    Args:
        number: of the step.
        keys: of its clips.
        terms: of the loss.
    """

    def __init__(self, number: int, keys: Sequence[str], terms: Mapping[str, Tensor]) -> None:
        self.number = number
        self.keys = keys
        self.terms = terms
        self._watched: dict[str, FiniteFlag] = {}

    def watch(self, what: str, value: Tensor) -> None:
        """Have a scalar looked at, wherever it was computed; what comes first is named first."""
        self._watched[what] = FiniteFlag(value)

    @property
    def not_finite(self) -> str | None:
        """What was not finite: "loss", "gradient", or the same of the discriminators."""
        return next((what for what, is_finite in self._watched.items() if not is_finite), None)


def written(terms: Mapping[str, Tensor]) -> dict[str, str]:
    """Each term as text, since JSON has no NaN."""
    return {name: repr(value.item()) for name, value in terms.items()}

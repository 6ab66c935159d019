"""What a metric is: how it is called, written and judged, and the function that measures it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

import torch
from torch import Tensor

from tae.runtime.errors import UserError

Scope = Literal["frame", "clip", "set"]
CONTEXT = ("fps", "latents", "time_factor", "images", "clip")  # what a metric may need beside the frames


class NotMeasured(Exception):  # noqa: N818  (the reason is a result, not a failure)
    """Raised by a metric that cannot be measured here: its weights are missing, frames are too small, clips too few.

    The metric is then null everywhere, with this exception's text as the reason. There is never another number in its place.
    """


class SetFunction(Protocol):
    """A metric of scope "set": a distance between two sets of clips, such as FVD.

    It may have a method `check_count(clips)` that raises NotMeasured where they are too few, asked before anything runs.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor, **context: Any) -> Any:
        """What is kept of a clip, (t, h, w, 3) uint8 twice: anything small that pickle takes, such as its features."""

    def compute(self, kept: Sequence[Any]) -> dict[str, Any]:
        """{"mean": float, "ci95": [low, high] or None, and fields of its own}, from what was kept of all clips.

        The clips come from all processes in the order of their keys. Raises NotMeasured where there are too few.
        """


class SharedOriginal(ABC):
    """A metric part of whose work concerns the original alone, such as its features: several reconstructions of one
    original, the model's and the baseline's, are measured together and that part is done once.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor) -> Any:
        """As `Metric` says of its scope."""
        return self.of_each(original, [reconstruction])[0]

    @abstractmethod
    def of_each(self, original: Tensor, reconstructions: Sequence[Tensor]) -> list[Any]:
        """The same for each reconstruction, which are shaped as the original."""


@dataclass(frozen=True)
class Definition:
    """How a metric is called, written and judged. It stands in metrics.json beside the numbers.

    Args:
        label: for readers, with the unit.
        higher_is_better: which of two values is the better one.
        digits: behind the decimal point.
        percent: write 0.01 as 1%.
        scope: "frame" and "clip" have a value for each clip, "set" has one for all clips together.
        every: measured on every n-th frame of a clip, from its first on; for metrics of scope "frame".
        about: what has to be known to measure the same: window, network, version, SHA-256 of the weights.
    """

    label: str
    higher_is_better: bool = True
    digits: int = 4
    percent: bool = False
    scope: Scope = "frame"
    every: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, stated: Mapping[str, Any]) -> Self:
        """From the plain values of a metrics.json; what a later version may have added is left out."""
        known = {item.name for item in fields(Definition)}
        return cls(**{name: value for name, value in stated.items() if name in known})

    def text(self, value: float, sign: str = "") -> str:
        """The value, rounded as befits the metric; sign "+" writes the one of positive values too."""
        return format(value, f"{sign}.{self.digits}{'%' if self.percent else 'f'}")

    @property
    def heading(self) -> str:
        """The label with an arrow in the direction of better values."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"


@dataclass(frozen=True, kw_only=True)
class Metric(Definition):
    """A metric: its definition and its function.

    Args:
        function: (original, reconstruction) to what `scope` says:
            "frame": (n, h, w, 3) uint8 twice to a value for each frame, (n,);
            "clip": (t, h, w, 3) uint8 twice to one number;
            "set": a `SetFunction`.
        needs: of `CONTEXT`, handed to functions of scope "clip" and "set" by name: `fps`, frames a second; `latents`,
            (c, t', h', w') that the clip was decoded from; `time_factor`, frames for each latent frame; `images`, every
            8th frame (n, h, w, 3) uint8 after the model saw it alone; `clip`, the reconstruction (3, t, h, w) before it is
            rounded. Where one of them does not exist (a baseline has no latents) the metric is left out.
        in_validation: also measured at each validation of a training.

    Raises:
        UserError: scope, needs or every are not of those above.
    """

    function: Callable[..., Any]
    needs: Sequence[str] = ()
    in_validation: bool = True

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise UserError(f"The metric {self.label} has scope={self.scope}. Choose one of: frame, clip, set.")
        if self.every < 1 or (self.every > 1 and self.scope != "frame"):
            raise UserError(
                f"The metric {self.label} has every={self.every}. Give 1 or more; metrics of scope clip and set take every "
                "frame."
            )
        unknown = [name for name in self.needs if name not in CONTEXT or self.scope == "frame"]
        if unknown:
            raise UserError(
                f"The metric {self.label} needs {unknown[0]}. Metrics of scope clip and set may need {', '.join(CONTEXT)}; "
                "those of scope frame see frames alone."
            )

    def definition(self) -> dict[str, Any]:
        """The definition as plain values, for metrics.json, with what the function's own `about()` adds."""
        stated = {item.name: getattr(self, item.name) for item in fields(Definition)}
        found = self.function.about() if hasattr(self.function, "about") else {}
        return stated | {"about": {**self.about, **found}}


class Measured(NamedTuple):
    """One clip's metrics: {name: value}, the mean over frames where it is of frames; {name: what a set metric keeps}."""

    values: dict[str, float]
    kept: dict[str, Any]


class Candidate(NamedTuple):
    """Reconstructions of a batch of clips, (b, t, h, w, 3) uint8, and what is known beside them.

    context: of `CONTEXT`, a value for each clip; what is None or missing does not exist.
    """

    frames: Tensor
    context: Mapping[str, Sequence[Any] | Tensor | None]


Able = tuple[Candidate, list[Measured]]  # a candidate that has what a metric needs, and where its clips' values go


class Measurement:
    """Measures clips, and remembers which metrics could not be.

    Args:
        metrics: {name: metric}.
        num_clips: how many there will be in all processes together, if that is known: metrics of a set for which it is too
            small are then left out from the start.
    """

    def __init__(self, metrics: Mapping[str, Metric], num_clips: int | None = None) -> None:
        self.metrics = dict(metrics)
        self.num_clips = num_clips
        self.reset()

    def reset(self) -> None:
        """Forget the reasons of an earlier set of clips."""
        self.reasons: dict[str, str] = {}
        for name, metric in self.metrics.items():
            if self.num_clips is not None and hasattr(metric.function, "check_count"):
                with self._reason_of(name):
                    metric.function.check_count(self.num_clips)

    def __call__(
        self, original: Tensor, reconstruction: Tensor, **context: Sequence[Any] | Tensor | None
    ) -> list[Measured]:
        """Measure a batch of clips, in full precision whatever surrounds the call.

        Args:
            original, reconstruction: (b, t, h, w, 3) uint8.
            **context: as in `Candidate`.
        """
        return self.of_each(original, [Candidate(reconstruction, context)])[0]

    @torch.no_grad()
    def of_each(self, original: Tensor, candidates: Sequence[Candidate]) -> list[list[Measured]]:
        """Measure several reconstructions of one batch of clips: for each of them what a call returns."""
        measured = [[Measured({}, {}) for _ in original] for _ in candidates]
        with torch.autocast(original.device.type, enabled=False):
            for name, metric in self.metrics.items():
                if name in self.reasons:
                    continue
                able: list[Able] = [
                    (candidate, clips)
                    for candidate, clips in zip(candidates, measured, strict=True)
                    if all(candidate.context.get(need) is not None for need in metric.needs)
                ]
                with self._reason_of(name):
                    self._measure(name, metric, original, able)
        return measured

    @contextmanager
    def _reason_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except NotMeasured as reason:
            self.reasons[name] = str(reason)

    def _measure(self, name: str, metric: Metric, original: Tensor, able: Sequence[Able]) -> None:
        for place, results in enumerate(zip(*of_each_clip(metric, original, able), strict=True)):
            for result, (_, clips) in zip(results, able, strict=True):
                if metric.scope == "set":
                    clips[place].kept[name] = result
                else:
                    clips[place].values[name] = float(result)


def of_each_clip(metric: Metric, original: Tensor, able: Sequence[Able]) -> list[list[Any]]:
    """For each candidate, the metric of each clip; the mean over its frames where it is of frames."""
    reconstructions = [candidate.frames for candidate, _ in able]
    if metric.scope == "frame":
        frames = [clips[:, :: metric.every].flatten(0, 1) for clips in (original, *reconstructions)]
        found = of_each(metric.function, frames[0], frames[1:], [{}] * len(able))
        return [values.float().unflatten(0, (len(original), -1)).mean(1).tolist() for values in found]
    contexts = [{need: candidate.context[need] for need in metric.needs} for candidate, _ in able]
    by_clip = [
        of_each(
            metric.function,
            clip,
            [frames[i] for frames in reconstructions],
            [{need: values[i] for need, values in context.items()} for context in contexts],  # type: ignore[index]
        )
        for i, clip in enumerate(original)
    ]
    return [list(results) for results in zip(*by_clip, strict=True)]


def of_each(
    function: Callable[..., Any],
    original: Tensor,
    reconstructions: Sequence[Tensor],
    contexts: Sequence[Mapping[str, Any]],
) -> list[Any]:
    """A metric's function of each reconstruction, together where it is a `SharedOriginal`."""
    if isinstance(function, SharedOriginal):
        return function.of_each(original, reconstructions) if reconstructions else []
    pairs = zip(reconstructions, contexts, strict=True)
    return [function(original, reconstruction, **context) for reconstruction, context in pairs]

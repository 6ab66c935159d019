"""Results of an evaluation: per clip, over all clips with intervals, and gathered from all processes."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from tae.metrics.metric import Metric, NotMeasured
from tae.metrics.registry import METRICS
from tae.runtime.errors import UserError

BOOTSTRAP_RESAMPLES = 1_000
BOOTSTRAP_SEED = 0
Interval = dict[str, Any]  # mean, ci95; reason where the mean is None
Item = TypeVar("Item")


@dataclass(frozen=True)
class ClipResult:
    """One clip's metrics, each the mean over its frames, and what metrics of the whole set keep of the clip."""

    key: str
    num_frames: int
    fps: float
    model: dict[str, float]
    trilinear: dict[str, float]
    model_kept: dict[str, Any] = field(default_factory=dict)
    trilinear_kept: dict[str, Any] = field(default_factory=dict)

    def without(self, names: Collection[str]) -> Self:
        """The same clip without the metrics that could not be measured on another one."""
        parts = (self.model, self.trilinear, self.model_kept, self.trilinear_kept)
        left = ({name: value for name, value in part.items() if name not in names} for part in parts)
        return type(self)(self.key, self.num_frames, self.fps, *left)


class ClipFrames(NamedTuple):
    """One clip to look at, on the CPU. (Lightning cannot pass a frozen dataclass on.)

    Shapes:
        original, reconstruction: (t, h, w, 3) uint8
        latents: (c, t', h', w') float, None where a model has none to look at
    """

    key: str
    fps: float
    original: Tensor
    reconstruction: Tensor
    latents: Tensor | None


@dataclass(frozen=True)
class EvaluationResult:
    """All clips' metrics, in the order of their keys.

    Args:
        clips: all of them.
        measured_by: {name: metric}, in the order in which tables show them.
        reasons: {name: why it could not be measured}.
        factors: the model's in time and space, which are the baseline's too.
        latents: the latents report, None where there is none.
    """

    clips: list[ClipResult]
    measured_by: Mapping[str, Metric] = field(default_factory=METRICS.copy)
    reasons: Mapping[str, str] = field(default_factory=dict)
    factors: tuple[int, int] = (8, 8)
    latents: dict[str, Any] | None = None

    def metrics(self) -> dict[str, Interval]:
        """The model's: {name: {"mean": float, "ci95": [low, high]}}; a mean of None has its "reason" beside it."""
        return self._model

    def trilinear(self) -> dict[str, Interval]:
        """The trilinear baseline's, in the same form."""
        return self._trilinear

    def advantage(self) -> dict[str, Interval]:
        """Model minus baseline, clip by clip, so that the interval tells whether the sign is certain."""
        pairs = [{k: clip.model[k] - clip.trilinear[k] for k in clip.trilinear} for clip in self.clips]
        return summarise(pairs, self._frames())

    @cached_property
    def _model(self) -> dict[str, Interval]:
        return self._summary([clip.model for clip in self.clips], [clip.model_kept for clip in self.clips])

    @cached_property
    def _trilinear(self) -> dict[str, Interval]:
        return self._summary([clip.trilinear for clip in self.clips], [clip.trilinear_kept for clip in self.clips])

    def _summary(self, rows: Sequence[Mapping[str, float]], kept: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
        """Every metric over all clips, in the order of `measured_by`."""
        found = summarise(rows, self._frames())
        for name, metric in self.measured_by.items():
            if name in self.reasons:
                found[name] = not_measured(self.reasons[name])
            elif metric.scope == "set" and all(name in of_clip for of_clip in kept):
                found[name] = of_the_set(metric, [of_clip[name] for of_clip in kept])
        return {name: found[name] for name in self.measured_by if name in found}

    def chosen(self) -> dict[str, ClipResult]:
        """The clips to look at: best, median and worst by PSNR; fewer where there are fewer than three clips."""
        ranked = sorted(self.clips, key=lambda clip: (clip.model["psnr"], clip.key))
        roles = {0: "worst", len(ranked) // 2: "median", len(ranked) - 1: "best"}  # a later role takes a shared place
        return {role: ranked[place] for place, role in reversed(roles.items())}

    def shown(self, others: int) -> dict[str, ClipResult]:
        """The chosen clips, and `others` evenly spaced over the keys: the same ones for every model on the same clips."""
        shown = self.chosen()
        places = np.linspace(0, len(self.clips) - 1, min(max(others, 0), len(self.clips))).round().astype(int)
        keys = {clip.key for clip in shown.values()}
        return shown | {f"clip{i}": self.clips[i] for i in places.tolist() if self.clips[i].key not in keys}

    def _frames(self) -> list[int]:
        return [clip.num_frames for clip in self.clips]


def once_each(clips: Sequence[ClipResult]) -> list[ClipResult]:
    """The clips in the order of their keys; UserError where there is none, or one was met twice."""
    if not clips:
        raise UserError("No clip was evaluated: every one was too short or could not be decoded. See data.shards.test.")
    ordered = sorted(clips, key=lambda clip: clip.key)
    for first, second in itertools.pairwise(ordered):
        if first.key == second.key:
            raise UserError(
                f"The clip {first.key} was evaluated twice, which would count it twice. "
                "Two patterns of data.shards.test overlap, or two shards hold a sample of that key."
            )
    return ordered


def of_the_set(metric: Metric, kept: Sequence[Any]) -> Interval:
    """A metric of all clips together, or why there is none."""
    try:
        return metric.function.compute(kept)  # type: ignore[attr-defined]
    except NotMeasured as reason:
        return not_measured(str(reason))


def measured(metrics: Mapping[str, Interval]) -> dict[str, Interval]:
    """The metrics that have a number."""
    return {name: dict(value) for name, value in metrics.items() if value.get("mean") is not None}


def not_measured(reason: str) -> Interval:
    """What stands in the place of a number."""
    return {"mean": None, "ci95": None, "reason": reason}


def summarise(rows: Sequence[Mapping[str, float]], num_frames: Sequence[int]) -> dict[str, Interval]:
    """Mean over all frames and its 95 % interval by bootstrap over clips, for each metric.

    Args:
        rows: for each clip {name: mean over its frames}.
        num_frames: frames of each clip; a mean over frames weighs clips by them.

    Returns:
        {name: {"mean": float, "ci95": [low, high]}}; "ci95" is None for a single clip, which says nothing of others.
    """
    values = np.array([[row[name] for name in rows[0]] for row in rows], dtype=np.float64)
    frames = np.asarray(num_frames, dtype=np.float64)
    means = frames @ values / frames.sum()
    clips = len(rows)
    # How often each clip is drawn in each resample: the same draws for all metrics, and a product in place of a gather.
    draws = np.random.default_rng(BOOTSTRAP_SEED).multinomial(clips, np.full(clips, 1 / clips), BOOTSTRAP_RESAMPLES)
    weights = draws * frames
    low, high = np.percentile(weights @ values / weights.sum(1, keepdims=True), [2.5, 97.5], axis=0)
    return {
        name: {"mean": float(means[i]), "ci95": [float(low[i]), float(high[i])] if clips > 1 else None}
        for i, name in enumerate(rows[0])
    }


def gather(items: list[Item]) -> list[Item]:
    """Every process's items, on every process. All processes must call it together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return items
    shares: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, items)
    return [item for share in shares for item in share]

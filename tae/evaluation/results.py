"""Results of an evaluation: per clip, over all clips with intervals, and gathered from all processes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tae.runtime.errors import UserError

BOOTSTRAP_RESAMPLES = 1_000
BOOTSTRAP_SEED = 0
Interval = dict[str, Any]  # mean, ci95
Item = TypeVar("Item")


@dataclass(frozen=True)
class ClipResult:
    """One clip's metrics, each the mean over its frames."""

    key: str
    num_frames: int
    fps: float
    model: dict[str, float]
    trilinear: dict[str, float]


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
    """All clips' metrics, in the order of their keys."""

    clips: list[ClipResult]

    def metrics(self) -> dict[str, Interval]:
        """The model's: {name: {"mean": float, "ci95": [low, high]}}."""
        return summarise([clip.model for clip in self.clips], self._frames())

    def trilinear(self) -> dict[str, Interval]:
        """The trilinear baseline's, in the same form."""
        return summarise([clip.trilinear for clip in self.clips], self._frames())

    def advantage(self) -> dict[str, Interval]:
        """Model minus baseline, clip by clip, so that the interval tells whether the sign is certain."""
        pairs = [{k: clip.model[k] - clip.trilinear[k] for k in clip.trilinear} for clip in self.clips]
        return summarise(pairs, self._frames())

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

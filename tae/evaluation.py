"""Evaluation protocol `tae-eval-1`.

Each clip's posterior mode is decoded, both sides are rounded to uint8, each metric is taken per frame and averaged
over all frames of all clips. Each clip counts once whatever the number of processes. Intervals: bootstrap over clips.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from tae.clip import clip_to_frames, frames_to_clip
from tae.errors import UserError
from tae.losses import Perceptual, outlier_rate
from tae.metrics import frame_metrics, trilinear_baseline

PROTOCOL = "tae-eval-1"
BOOTSTRAP_RESAMPLES = 1_000
BOOTSTRAP_SEED = 0

Batch = Mapping[str, Any]  # frames uint8 (b, t, h, w, 3), keys list[str], fps list[float]
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


class Evaluation(L.LightningModule):
    """Runs the protocol: `Trainer.test(Evaluation(model), dataloader)`, then `.result`.

    Args:
        model: called as `model(clip, sample_posterior=False)`; returns an object with `reconstruction` (shaped as the
            clip) and `latents` ((b, c, t', h', w'), or None where a model has none to look at). An autoencoder of
            other authors needs no more than an adapter with this one method.
        lpips: the network for perceptual distance, or None where no weights are at hand.
    """

    def __init__(self, model: nn.Module, lpips: Perceptual | None = None) -> None:
        super().__init__()
        self.model = model
        self.lpips = lpips
        self._clips: list[ClipResult] = []
        self._result: EvaluationResult | None = None

    @property
    def result(self) -> EvaluationResult:
        """The same on every process. Raises RuntimeError before `Trainer.test` has ended."""
        if self._result is None:
            raise RuntimeError("Evaluation has no result yet: run Trainer.test(evaluation, dataloader) first.")
        return self._result

    def on_test_start(self) -> None:
        self._clips, self._result = [], None

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        original = batch["frames"]
        clip = frames_to_clip(original)
        reconstruction, latents = self._reconstruct(clip, batch["keys"])
        model = frame_metrics(original, reconstruction, self.lpips)
        trilinear = frame_metrics(original, clip_to_frames(trilinear_baseline(clip)), self.lpips)
        model_rows = _rows(model)
        if latents is not None:
            rates = torch.stack([outlier_rate(z[None]) for z in latents]).tolist()
            model_rows = [row | {"outlier_rate": rate} for row, rate in zip(model_rows, rates, strict=True)]
        columns = zip(batch["keys"], batch["fps"], model_rows, _rows(trilinear), strict=True)
        self._clips += [ClipResult(key, original.shape[1], fps, ours, theirs) for key, fps, ours, theirs in columns]

    def on_test_epoch_end(self) -> None:
        self._result = EvaluationResult(once_each(gather(self._clips)))
        means = {f"test/{name}": value["mean"] for name, value in self._result.metrics().items()}
        self.log_dict(means, rank_zero_only=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ClipFrames]:
        """The frames before and after, for looking at: `Trainer.predict(evaluation, dataloader)`."""
        reconstruction, latents = self._reconstruct(frames_to_clip(batch["frames"]), batch["keys"])
        to_look_at = [None] * len(reconstruction) if latents is None else latents.float().cpu()
        columns = zip(batch["keys"], batch["fps"], batch["frames"].cpu(), reconstruction.cpu(), to_look_at, strict=True)
        return [ClipFrames(*column) for column in columns]

    def _reconstruct(self, clip: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Reconstructed frames (b, t, h, w, 3) uint8 and the latents they were decoded from."""
        out = self.model(clip, sample_posterior=False)
        finite = out.reconstruction.isfinite().flatten(1).all(1).tolist()
        broken = [key for key, is_finite in zip(keys, finite, strict=True) if not is_finite]
        if broken:
            raise UserError(
                f"The model's reconstruction of {broken[0]} is not finite, so no metric means anything. "
                "Evaluate with precision=fp32 to see whether the precision overflows, or another checkpoint."
            )
        return clip_to_frames(out.reconstruction), out.latents


def evaluate_model(
    trainer: L.Trainer,
    model: nn.Module,
    clips: Iterable[Batch],
    chosen_clips: Callable[[list[str]], Iterable[Batch]],
    lpips: Perceptual | None = None,
    others_shown: int = 0,
) -> tuple[EvaluationResult, dict[str, ClipFrames]]:
    """Measure all clips, then reconstruct the best, the median, the worst and some others once more to be looked at.

    Args:
        clips: loader of this process's share of the clips.
        chosen_clips: loader of the clips with the given keys; which they are is known only at the end.
        others_shown: how many beside best, median and worst, the same ones whatever the model.

    Returns:
        the result and {role: frames} of the clips to look at, the same on every process.

    Raises:
        UserError: no clip, a clip met twice, or a reconstruction that is not finite.
    """
    evaluation = Evaluation(model, lpips)
    trainer.test(evaluation, clips, verbose=False)
    shown = evaluation.result.shown(others_shown)
    batches = trainer.predict(evaluation, chosen_clips([clip.key for clip in shown.values()])) or []
    frames = {clip.key: clip for clip in gather([clip for batch in batches for clip in batch])}
    return evaluation.result, {role: frames[clip.key] for role, clip in shown.items()}


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


def _rows(metrics: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """{name: (b, t)} to b rows of {name: mean over t}, with one copy to the host."""
    columns = torch.stack([value.float().mean(1) for value in metrics.values()], dim=1)
    return [dict(zip(metrics, row, strict=True)) for row in columns.tolist()]

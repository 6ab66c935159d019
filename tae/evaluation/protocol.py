"""Evaluation protocols `tae-eval-1` and, with further metrics, `tae-eval-2`.

Each clip's posterior mode is decoded, both sides are rounded to uint8, each metric is taken per frame and averaged
over all frames of all clips. Each clip counts once whatever the number of processes. Intervals: bootstrap over clips.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning as L
from torch import Tensor, nn

from data.batch import Batch
from tae.evaluation.results import ClipFrames, ClipResult, EvaluationResult, gather, measured, once_each
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.metric import Candidate, Measurement, Metric
from tae.metrics.registry import METRICS, complete
from tae.metrics.temporal import IMAGE_STEP
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.runtime.errors import UserError


class Evaluation(L.LightningModule):
    """Runs the protocol: `Trainer.test(Evaluation(model), dataloader)`, then `.result`.

    Args:
        model: called as `model(clip, sample_posterior=False)`; returns an object with `reconstruction` (shaped as the
            clip) and `latents` ((b, c, t', h', w'), or None where a model has none to look at). Its `time_factor` and
            `space_factor` are frames, and pixels along an axis, for each of the latent. An autoencoder of other authors
            needs no more than an adapter with these three.
        metrics: {name: metric}; PSNR, by which clips are ranked, is always among them.
        num_clips: as in `tae.metrics.metric.Measurement`.
    """

    def __init__(self, model: nn.Module, metrics: Mapping[str, Metric] = METRICS, num_clips: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.factors: tuple[int, int] = (model.time_factor, model.space_factor)  # type: ignore[assignment]
        self.measure = Measurement(complete(metrics), num_clips)
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
        self.measure.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        original = batch["frames"]
        clip = frames_to_clip(original)
        reconstruction, latents = self._reconstruct(clip, batch["keys"])
        baseline = clip_to_frames(trilinear_baseline(clip, *self.factors))
        shared: dict[str, Sequence[Any]] = {"fps": batch["fps"], "time_factor": [self.factors[0]] * len(original)}
        own = {"latents": latents, "images": self._images(clip, batch["keys"])}
        model, trilinear = self.measure.of_each(
            original, [Candidate(reconstruction, shared | own), Candidate(baseline, shared)]
        )
        for key, fps, ours, theirs in zip(batch["keys"], batch["fps"], model, trilinear, strict=True):
            self._clips.append(
                ClipResult(key, original.shape[1], fps, ours.values, theirs.values, ours.kept, theirs.kept)
            )

    def on_test_epoch_end(self) -> None:
        reasons = dict(gather(list(self.measure.reasons.items())))
        clips = [clip.without(reasons) for clip in once_each(gather(self._clips))]
        self._result = EvaluationResult(clips, self.measure.metrics, reasons, self.factors)
        means = {f"test/{name}": value["mean"] for name, value in measured(self._result.metrics()).items()}
        self.log_dict(means, rank_zero_only=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ClipFrames]:
        """The frames before and after, for looking at: `Trainer.predict(evaluation, dataloader)`."""
        reconstruction, latents = self._reconstruct(frames_to_clip(batch["frames"]), batch["keys"])
        to_look_at = [None] * len(reconstruction) if latents is None else latents.float().cpu()
        columns = zip(batch["keys"], batch["fps"], batch["frames"].cpu(), reconstruction.cpu(), to_look_at, strict=True)
        return [ClipFrames(*column) for column in columns]

    def _images(self, clip: Tensor, keys: Sequence[str]) -> Tensor | None:
        """Every 8th frame (b, ceil(t / 8), h, w, 3) uint8 through the model as a clip of one frame, where a metric asks."""
        if not any("images" in metric.needs for metric in self.measure.metrics.values()):
            return None
        frames = clip[:, :, ::IMAGE_STEP].movedim(2, 1)
        images = frames.flatten(0, 1)[:, :, None]
        names = [key for key in keys for _ in range(frames.shape[1])]
        return self._reconstruct(images, names)[0][:, 0].unflatten(0, frames.shape[:2])

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
    metrics: Mapping[str, Metric] = METRICS,
    others_shown: int = 0,
    num_clips: int | None = None,
) -> tuple[EvaluationResult, dict[str, ClipFrames]]:
    """Measure all clips, then reconstruct the best, the median, the worst and some others once more to be looked at.

    Args:
        clips: loader of this process's share of the clips.
        chosen_clips: loader of the clips with the given keys; which they are is known only at the end.
        others_shown: how many beside best, median and worst, the same ones whatever the model.
        num_clips: as in `tae.metrics.metric.Measurement`.

    Returns:
        the result and {role: frames} of the clips to look at, the same on every process.

    Raises:
        UserError: no clip, a clip met twice, or a reconstruction that is not finite.
    """
    evaluation = Evaluation(model, metrics, num_clips)
    trainer.test(evaluation, clips, verbose=False)
    shown = evaluation.result.shown(others_shown)
    batches = trainer.predict(evaluation, chosen_clips([clip.key for clip in shown.values()])) or []
    frames = {clip.key: clip for clip in gather([clip for batch in batches for clip in batch])}
    return evaluation.result, {role: frames[clip.key] for role, clip in shown.items()}

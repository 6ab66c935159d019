"""Evaluation protocols `tae-eval-1`, with further metrics `tae-eval-2`, and those of published tables.

Each clip's posterior mode is decoded, unless a sample is asked for; both sides are rounded to uint8, each metric is taken
per frame and averaged over all frames of all clips. Each clip counts once whatever the number of processes. Intervals:
bootstrap over clips.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from data.batch import Batch
from tae.evaluation.results import ClipFrames, ClipResult, EvaluationResult, gather, measured, once_each
from tae.latents.probes import Probed, probe
from tae.latents.report import latents_report
from tae.latents.sums import LatentSums
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.metric import Candidate, Measurement, Metric
from tae.metrics.registry import METRICS, complete
from tae.metrics.temporal import IMAGE_STEP
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.posterior import DiagonalGaussian
from tae.runtime.errors import UserError

PROBED_SHARE, MAX_PROBED = 8, 4  # one of eight clips, at most four, is changed and encoded again for the latents report


class Evaluation(L.LightningModule):
    """Runs the protocol: `Trainer.test(Evaluation(model), dataloader)`, then `.result`.

    Args:
        model: called as `model(clip, sample_posterior=False)`; returns an object with `reconstruction` (shaped as the
            clip) and `latents` ((b, c, t', h', w'), or None where a model has none to look at). Its `time_factor` and
            `space_factor` are frames, and pixels along an axis, for each of the latent. An autoencoder of other authors
            needs no more than an adapter with these three; with `posterior` in what it returns, and `encode` and `decode`
            as ours, its latents report is whole.
        metrics: {name: metric}; PSNR, by which clips are ranked, is always among them.
        num_clips: as in `tae.metrics.metric.Measurement`.
        sample_seed: decode a sample of the posterior, of noise that depends on this seed and the clip's key alone; None
            decodes its mode.
        about_latents: sum up what the latents report is made from.
    """

    predicts = "reconstructing clips to look at"

    def __init__(
        self,
        model: nn.Module,
        metrics: Mapping[str, Metric] = METRICS,
        num_clips: int | None = None,
        sample_seed: int | None = None,
        about_latents: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.factors: tuple[int, int] = (model.time_factor, model.space_factor)  # type: ignore[assignment]
        self.measure = Measurement(complete(metrics), num_clips)
        self.sample_seed = sample_seed
        self.about_latents = about_latents
        self.latents = LatentSums()  # of all processes, once the test has ended
        self._clips: list[ClipResult] = []
        self._result: EvaluationResult | None = None

    @property
    def result(self) -> EvaluationResult:
        """The same on every process. Raises RuntimeError before `Trainer.test` has ended."""
        if self._result is None:
            raise RuntimeError("Evaluation has no result yet: run Trainer.test(evaluation, dataloader) first.")
        return self._result

    def on_test_start(self) -> None:
        self._clips, self._result, self.latents = [], None, LatentSums()
        self.measure.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        original = batch["frames"]
        clip = frames_to_clip(original)
        out = self._reconstruct(clip, batch["keys"])
        baseline = trilinear_baseline(clip, *self.factors)
        shared: dict[str, Sequence[Any] | Tensor | None] = {
            "fps": batch["fps"],
            "time_factor": [self.factors[0]] * len(original),
        }
        own = {"latents": out.latents, "images": self._images(clip, batch["keys"]), "clip": out.clip}
        model, trilinear = self.measure.of_each(
            original,
            [
                Candidate(clip_to_frames(out.clip), shared | own),
                Candidate(clip_to_frames(baseline), shared | {"clip": baseline}),
            ],
        )
        for key, fps, ours, theirs in zip(batch["keys"], batch["fps"], model, trilinear, strict=True):
            self._clips.append(
                ClipResult(key, original.shape[1], fps, ours.values, theirs.values, ours.kept, theirs.kept)
            )
        if self.about_latents:
            self._add_latents(out, clip, batch)

    def _add_latents(self, out: "Reconstructed", clip: Tensor, batch: Batch) -> None:
        """Count the posteriors' means (where a model shows no posterior, the latents) for the latents report."""
        means = out.latents if out.posterior is None else out.posterior.mean
        if means is None:
            return
        labels = batch.get("labels") or [""] * len(clip)
        for i, (key, label) in enumerate(zip(batch["keys"], labels, strict=True)):
            std = None if out.posterior is None else torch.exp(0.5 * out.posterior.logvar[i].float())
            self.latents.add(means[i], std, clip[i], key, label)

    def on_test_epoch_end(self) -> None:
        reasons = dict(gather(list(self.measure.reasons.items())))
        clips = [clip.without(reasons) for clip in once_each(gather(self._clips))]
        self._result = EvaluationResult(clips, self.measure.metrics, reasons, self.factors)
        shares, self.latents = gather([self.latents]), LatentSums()
        for share in shares:
            self.latents += share
        means = {f"test/{name}": value["mean"] for name, value in measured(self._result.metrics()).items()}
        self.log_dict(means, rank_zero_only=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ClipFrames]:
        """The frames before and after, for looking at: `Trainer.predict(evaluation, dataloader)`."""
        out = self._reconstruct(frames_to_clip(batch["frames"]), batch["keys"])
        reconstruction = clip_to_frames(out.clip)
        to_look_at = [None] * len(reconstruction) if out.latents is None else out.latents.float().cpu()
        columns = zip(batch["keys"], batch["fps"], batch["frames"].cpu(), reconstruction.cpu(), to_look_at, strict=True)
        return [ClipFrames(*column) for column in columns]

    def _images(self, clip: Tensor, keys: Sequence[str]) -> Tensor | None:
        """Every 8th frame (b, ceil(t / 8), h, w, 3) uint8 through the model as a clip of one frame, where a metric asks."""
        if not any("images" in metric.needs for metric in self.measure.metrics.values()):
            return None
        frames = clip[:, :, ::IMAGE_STEP].movedim(2, 1)
        images = frames.flatten(0, 1)[:, :, None]
        names = [key for key in keys for _ in range(frames.shape[1])]
        return clip_to_frames(self._reconstruct(images, names).clip)[:, 0].unflatten(0, frames.shape[:2])

    def _reconstruct(self, clip: Tensor, keys: Sequence[str]) -> "Reconstructed":
        """The model's reconstruction of a batch of clips (b, 3, t, h, w)."""
        out = self._decode_mode(clip) if self.sample_seed is None else self._decode_samples(clip, keys)
        finite = out.clip.isfinite().flatten(1).all(1).tolist()
        broken = [key for key, is_finite in zip(keys, finite, strict=True) if not is_finite]
        if broken:
            raise UserError(
                f"The model's reconstruction of {broken[0]} is not finite, so no metric means anything. "
                "Evaluate with precision=fp32 to see whether the precision overflows, or another checkpoint."
            )
        return out

    def _decode_mode(self, clip: Tensor) -> "Reconstructed":
        out = self.model(clip, sample_posterior=False)
        return Reconstructed(out.reconstruction, out.latents, getattr(out, "posterior", None))

    def _decode_samples(self, clip: Tensor, keys: Sequence[str]) -> "Reconstructed":
        """One clip after the other, each from a generator of its own: whatever the batches, the noise is the same."""
        outputs = []
        with torch.random.fork_rng(devices=[clip.device] if clip.is_cuda else []):
            for key, one in zip(keys, clip.split(1), strict=True):
                torch.manual_seed(seed_of(self.sample_seed, key))
                outputs.append(self.model(one, sample_posterior=True))
        latents = [out.latents for out in outputs]
        posteriors = [out.posterior for out in outputs if getattr(out, "posterior", None) is not None]
        return Reconstructed(
            torch.cat([out.reconstruction for out in outputs]),
            None if latents[0] is None else torch.cat(latents),
            DiagonalGaussian(torch.cat([p.mean for p in posteriors]), torch.cat([p.logvar for p in posteriors]))
            if posteriors
            else None,
        )


class Reconstructed(NamedTuple):
    """clip: (b, 3, t, h, w), not clamped; latents: what it was decoded from; posterior: over them. The last two are None
    where a model has none to look at."""

    clip: Tensor
    latents: Tensor | None
    posterior: DiagonalGaussian | None


def seed_of(seed: int | None, key: str) -> int:
    """Of one clip's noise."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:7], "big")


class Probes(L.LightningModule):
    """`Trainer.predict(Probes(...), dataloader)`: what the latents report asks of single clips.

    Args:
        model: as for `Evaluation`, with `encode` and `decode`.
        sums: of all clips.
    """

    predicts = "changed clips for the latents report"

    def __init__(self, model: nn.Module, sums: LatentSums) -> None:
        super().__init__()
        self.model = model
        self.variance = sums.channel_variance

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Probed]:
        clips = frames_to_clip(batch["frames"]).split(1)
        return [
            probe(self.model, key, clip, self.variance)  # type: ignore[arg-type]
            for key, clip in zip(batch["keys"], clips, strict=True)
        ]


def evaluate_model(
    trainer: L.Trainer,
    model: nn.Module,
    clips: Iterable[Batch],
    chosen_clips: Callable[[list[str]], Iterable[Batch]],
    metrics: Mapping[str, Metric] = METRICS,
    others_shown: int = 0,
    num_clips: int | None = None,
    sample_seed: int | None = None,
    about_latents: bool = False,
) -> tuple[EvaluationResult, dict[str, ClipFrames]]:
    """Measure all clips, then reconstruct the best, the median, the worst and some others once more to be looked at.

    Args:
        clips: loader of this process's share of the clips.
        chosen_clips: loader of the clips with the given keys; which they are is known only at the end.
        others_shown: how many beside best, median and worst, the same ones whatever the model.
        num_clips, sample_seed: as in `Evaluation`.
        about_latents: give the result its latents report.

    Returns:
        the result and {role: frames} of the clips to look at, the same on every process.

    Raises:
        UserError: no clip, a clip met twice, or a reconstruction that is not finite.
    """
    evaluation = Evaluation(model, metrics, num_clips, sample_seed, about_latents)
    trainer.test(evaluation, clips, verbose=False)
    shown = evaluation.result.shown(others_shown)
    batches = trainer.predict(evaluation, chosen_clips([clip.key for clip in shown.values()])) or []
    frames = {clip.key: clip for clip in gather([clip for batch in batches for clip in batch])}
    result = evaluation.result
    if evaluation.latents.clips:
        result = replace(result, latents=report_on(trainer, evaluation, chosen_clips))
    return result, {role: frames[clip.key] for role, clip in shown.items()}


def report_on(
    trainer: L.Trainer, evaluation: Evaluation, chosen_clips: Callable[[list[str]], Iterable[Batch]]
) -> dict[str, Any]:
    """The latents report, for which a few clips, evenly spaced over the keys, go through the model some more times."""
    keys = [clip.key for clip in evaluation.result.clips]
    probed: list[Probed] = []
    if all(hasattr(evaluation.model, name) for name in ("encode", "decode")):
        count = min(math.ceil(len(keys) / PROBED_SHARE), MAX_PROBED)
        chosen = keys[:: math.ceil(len(keys) / count)]
        batches = trainer.predict(Probes(evaluation.model, evaluation.latents), chosen_clips(chosen)) or []
        probed = gather([clip for batch in batches for clip in batch])
    return latents_report(evaluation.latents, probed)

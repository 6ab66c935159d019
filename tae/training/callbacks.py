"""What happens around training: timing, the progress bar's figures, reconstruction videos."""

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple, Self

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from data.batch import Batch
from tae.evaluation.pictures import side_by_side
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.runtime.annotations import NotNegative
from tae.runtime.console import plain_console
from tae.runtime.lightning_internals import is_logged_step
from tae.runtime.progress import clock, is_interactive
from tae.runtime.trainer_progress import EvaluationLines
from tae.video.writer import write_video


class ProgressBar(RichProgressBar):
    """Lightning's bar of the epoch's batches, with the step and the training figures behind it."""

    def __init__(self, refresh_rate: NotNegative) -> None:
        super().__init__(refresh_rate=refresh_rate, theme=RichProgressBarTheme(metrics_format=".3g"))

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        figures = super().get_metrics(trainer, pl_module)
        shown = {name.removeprefix("train/"): value for name, value in figures.items() if name.startswith("train/")}
        return {"step": f"{trainer.global_step}/{trainer.max_steps}"} | shown

    def _get_train_description(self, current_epoch: int) -> str:
        """Lightning writes "Epoch 0/-2" where training is counted in steps."""
        return f"Epoch {current_epoch}"


class TrainingLines(EvaluationLines):
    """Where no bar can be drawn: a line for each logged step (`trainer.log_every_n_steps`) and for each validation."""

    HIDDEN = ("train/clips_per_second", "train/frames_per_second", "train/step_time")

    def __init__(self) -> None:
        super().__init__()
        self.began: tuple[int, float] | None = None  # step and time at which this process began to train

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self.shown or pl_module.between_steps or not is_logged_step(trainer):
            return
        metrics = trainer.callback_metrics  # the loggers read them at this step too: no further wait for the device
        terms = [figure(name, value) for name, value in metrics.items() if self.is_term(name)]
        times = [f"{metrics['train/step_time']:.3g} s/step"] if "train/step_time" in metrics else []
        self.print("  ".join([step_of(trainer), *terms, *times, *self.time_left(trainer)]))

    def is_term(self, name: str) -> bool:
        stage, _, term = name.partition("/")
        source, _, term = term.rpartition("/")  # of several sources there are too many terms for a line
        return stage == "train" and name not in self.HIDDEN and (not source or term in ("loss", "psnr"))

    def time_left(self, trainer: L.Trainer) -> list[str]:
        """From the time of all steps so far, validations and checkpoints included."""
        if self.began is None or trainer.max_steps < 0 or trainer.global_step <= self.began[0]:
            return []
        per_step = (time.monotonic() - self.began[1]) / (trainer.global_step - self.began[0])
        return [f"{clock(per_step * (trainer.max_steps - trainer.global_step))} left"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        figures = [figure(name, value) for name, value in metrics.items() if name.startswith("val/")]
        if figures and not trainer.sanity_checking:
            self.print("  ".join([step_of(trainer), "validation:", *figures]))


def step_of(trainer: L.Trainer) -> str:
    return f"step {trainer.global_step}" + (f"/{trainer.max_steps}" if trainer.max_steps >= 0 else "")


def figure(name: str, value: torch.Tensor) -> str:
    """A metric without its stage, as a person reads it."""
    name = name.partition("/")[2]
    return f"{name} {value:.2f} dB" if name.rpartition("/")[2] == "psnr" else f"{name} {value:.4g}"


def training_progress(refresh_rate: int) -> LightningProgressBar:
    """`ProgressBar` where standard output is a terminal, else `TrainingLines`.

    Args:
        refresh_rate: batches between two refreshes of the bar; 0 shows neither bar nor lines.
    """
    if refresh_rate == 0 or is_interactive(plain_console()):
        return ProgressBar(refresh_rate)
    return TrainingLines()


class TimedStep(NamedTuple):
    """seconds; clips and frames of this process; the source that all of its batches are of, "" where there is none."""

    seconds: float
    clips: int
    frames: int
    source: str

    @classmethod
    def of(cls, seconds: float, batches: Sequence[tuple[int, int, str]]) -> Self:
        """A step with these batches: (clips, frames, source) of each."""
        clips, frames, sources = zip(*batches, strict=True)
        return cls(seconds, sum(clips), sum(frames), sources[0] if len(set(sources)) == 1 else "")


class StepTimer(Callback):
    """Seconds of a training step from the end of one step to the end of the next: all of its batches
    (`accumulate_grad_batches`), loading and the writing of checkpoints included.

    No device is waited for: over many steps the launches cannot run ahead of the work. The first steps (compilation,
    autotuning, filling of queues) and those with a validation in between are left out. What is logged is the mean since
    it was logged before; where batches are of several sources also that of the steps of each (`train/SOURCE/step_time`),
    but for steps of several.
    """

    WARM_UP_STEPS = 3

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0
        self.seen = 0
        self.unlogged: list[TimedStep] = []
        self.batches: list[tuple[int, int, str]] = []  # clips, frames and source of each of the running step
        self.last_end: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        return self.seconds / self.steps if self.steps else None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.seen >= self.WARM_UP_STEPS:
            clips, frames = batch["frames"].shape[:2]
            self.batches.append((clips, clips * frames, batch.get("source", "")))
        if pl_module.between_steps:
            return
        now = time.perf_counter()
        self.seen += 1
        if self.last_end is not None and self.seen > self.WARM_UP_STEPS:
            self.steps += 1
            self.seconds += now - self.last_end
            self.unlogged.append(TimedStep.of(now - self.last_end, self.batches))
        self.batches = []
        self.last_end = now
        if self.unlogged and is_logged_step(trainer):
            self.log_times(trainer, pl_module)

    def log_times(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log what was measured since it was logged before."""
        seconds = sum(step.seconds for step in self.unlogged)
        rates = {
            "clips_per_second": sum(step.clips for step in self.unlogged) * trainer.world_size / seconds,
            "frames_per_second": sum(step.frames for step in self.unlogged) * trainer.world_size / seconds,
        }
        pl_module.log("train/step_time", seconds / len(self.unlogged), prog_bar=True)
        pl_module.log_dict({f"train/{name}": rate for name, rate in rates.items()})
        for source in {step.source for step in self.unlogged if step.source}:
            times = [step.seconds for step in self.unlogged if step.source == source]
            pl_module.log(f"train/{source}/step_time", mean(times))
        self.unlogged.clear()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_end = None


class ReconstructionVideos(Callback):
    """At each validation write the first clips beside their reconstructions, to `videos/` and to loggers that take videos.

    Args:
        folder: where the MP4 files go, named by step and clip.
        num_clips: how many clips, taken from the first validation batch of the first process; 0 writes none.
    """

    def __init__(self, folder: str, num_clips: NotNegative) -> None:
        self.folder = Path(folder)
        self.num_clips = num_clips

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        if self.num_clips and batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            self.write(trainer, pl_module, batch)

    @torch.no_grad()
    def write(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch) -> None:
        frames = batch["frames"][: self.num_clips]
        with trainer.precision_plugin.forward_context():
            reconstructed = clip_to_frames(pl_module(frames_to_clip(frames)))
        for original, other, key, fps in zip(
            frames.cpu(), reconstructed.cpu(), batch["keys"], batch["fps"], strict=False
        ):
            path = self.folder / f"step{trainer.global_step:07d}_{key}.mp4"
            write_video(path, side_by_side(original, other), fps)
            for logger in trainer.loggers:
                if hasattr(logger, "log_video"):
                    logger.log_video(f"val/{key}", [str(path)], step=trainer.global_step)

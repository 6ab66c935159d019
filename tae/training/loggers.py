"""Where a run's figures go: opened before anything long, closed with the final metrics, W&B going on under the same id."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from PIL import Image

from tae.evaluation.results import measured
from tae.latents.report import report_scalars
from tae.runtime.config import plain
from tae.runtime.environment import environment
from tae.runtime.errors import UserError, first_line
from tae.runtime.files import write_text
from tae.video.reader import VideoReader

WANDB_ID = "wandb_id.txt"  # in the output folder, so that resume=auto continues the same W&B run


class TensorBoardLogger(LightningTensorBoardLogger):
    """Lightning's, and it takes videos as W&B's does: as animated pictures, which TensorBoard's image tab plays.

    (`SummaryWriter.add_video` writes the same, but needs the package moviepy to make them.)
    """

    @rank_zero_only
    def log_video(self, key: str, videos: Sequence[str], step: int | None = None) -> None:
        """Write video files under one name."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for number, path in enumerate(videos):
            content, height, width = as_gif(Path(path))
            tag = key if len(videos) == 1 else f"{key}/{number}"
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
            writer = self.experiment._get_file_writer()
            writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def as_gif(path: Path) -> tuple[bytes, int, int]:
    """A video file as an animated GIF that repeats, its height and width."""
    with VideoReader(path) as reader:
        pictures = [Image.fromarray(np.ascontiguousarray(frame.rgb)) for frame in reader.frames()]
        milliseconds = 1000 / float(reader.rate)
    file = io.BytesIO()
    pictures[0].save(
        file, "GIF", save_all=True, append_images=pictures[1:], duration=max(round(milliseconds), 20), loop=0
    )
    return file.getvalue(), pictures[0].height, pictures[0].width


def open_loggers(cfg: DictConfig) -> list[Logger]:
    """Build the loggers, log in to W&B now (a run should not find out later that nobody keeps its figures), and give every
    logger the config and the state of the code.

    Raises:
        UserError: W&B does not take the run.
    """
    loggers: list[Logger] = [
        open_wandb(settings, cfg) if "WandbLogger" in settings["_target_"] else instantiate(settings)
        for settings in (cfg.get("logger") or {}).values()
        if settings is not None
    ]
    for logger in loggers:
        logger.log_hyperparams(plain(cfg) | {"environment": environment()})
    return loggers


def open_wandb(settings: DictConfig, cfg: DictConfig) -> WandbLogger:
    """Begin a W&B run, or continue the one of this output folder where training is resumed."""
    import wandb

    if wandb.run is not None:  # left open by a run of this sweep that failed; figures of two runs would mix
        wandb.finish(exit_code=1)
    record = Path(cfg.output_dir) / WANDB_ID
    identity = settings.id
    if identity is None and cfg.resume is not None and record.is_file():
        identity = record.read_text(encoding="utf-8").strip()
    # Offline there is nobody to ask whether the run exists; `wandb sync` joins the parts of one id.
    logger: WandbLogger = instantiate(settings, id=identity, resume=None if settings.offline else "allow")
    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        raise UserError(
            f"W&B does not take this run ({first_line(error)}). Run `wandb login`, write locally with "
            "logger.wandb.offline=true, or choose logger=csv or logger=tensorboard."
        ) from error
    _remember(logger, record)
    return logger


@rank_zero_only
def _remember(logger: WandbLogger, record: Path) -> None:
    write_text(record, f"{logger.version}\n")


def close_loggers(loggers: Sequence[Logger], document: Mapping[str, Any], step: int) -> None:
    """Log the final evaluation's means as test/NAME, its latents report as latents/NAME, and end what has an end.

    Args:
        loggers: of the run.
        document: what the evaluation's metrics.json holds.
        step: of the training's end.
    """
    figures = {f"test/{name}": value["mean"] for name, value in measured(document["metrics"]).items()}
    if "latents" in document:
        figures |= {f"latents/{name}": value for name, value in report_scalars(document["latents"]).items()}
    for logger in loggers:
        logger.log_metrics(figures, step)
        logger.save()
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            _finish(logger)


@rank_zero_only
def _finish(logger: WandbLogger) -> None:
    """Say that the run has ended: the next one of a sweep would continue in it."""
    logger.experiment.finish()

"""Train a video autoencoder, then evaluate its best checkpoint.

python train.py                                              the demo: no download, no GPU, no account
python train.py experiment=ucf101 trainer.devices=8          a named run of conf/experiment/
python train.py -m experiment=ucf101 loss.opl.weight=0,1     a sweep
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from torch import Tensor

from data.datamodule import ClipDataModule
from tae.adversarial.adversary import PatchAdversary
from tae.evaluation.run import build_metrics, measure
from tae.model.checkpoint_file import read_checkpoint
from tae.model.distillation import Distillation
from tae.model.interface import VideoAutoencoder
from tae.model.pretrained import LoadedModel, load_autoencoder
from tae.model.pretrained_decoder import load_decoder, pair
from tae.model.unweighted import unweighted
from tae.runtime.config import plain, write_config
from tae.runtime.console import say
from tae.runtime.errors import UserError, first_line
from tae.runtime.files import remove_leftovers
from tae.runtime.ownership import owned
from tae.runtime.paths import to_path
from tae.training.callbacks import StepTimer
from tae.training.checkpointing import LastCheckpoint
from tae.training.config_checks import check_training
from tae.training.ema import MovingAverage
from tae.training.loggers import close_loggers, open_loggers
from tae.training.module import AutoencoderModule
from tae.training.resume import check_exact, check_resumable, find_resumable

Kind = TypeVar("Kind", bound=L.Callback)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train as configured and return what metrics.json holds: the best checkpoint's evaluation.

    Raises:
        UserError: a setting is wrong, another run owns the output folder, or training has to stop.
    """
    check_training(cfg)
    with owned(Path(cfg.output_dir)):
        return train_and_evaluate(cfg)


def train_and_evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Training and the evaluation of its best checkpoint, in an output folder that is this run's own."""
    resume_from = find_checkpoint(cfg)
    write_config(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    data = instantiate(cfg.data)
    if getattr(rank_zero_only, "rank", 0) == 0:  # before anything that takes long or leaves a trace
        for folder in ("", "checkpoints", "videos"):
            remove_leftovers(Path(cfg.output_dir) / folder)
        data.prepare_data()
        data.setup("fit")
    loss, metrics = instantiate(cfg.loss), build_metrics(cfg)
    callbacks = [callback for callback in instantiate(cfg.get("callbacks") or {}).values() if callback is not None]
    if cfg.ema.decay is not None:
        callbacks.insert(0, MovingAverage(cfg.ema.decay))  # before those that use what the model gives in a validation
    # By their types, whatever their order; the command line may have left out either (`~callbacks.step_timer`).
    timer, best = first_of(StepTimer, callbacks), first_of(ModelCheckpoint, callbacks)
    trainer = build_trainer(cfg, callbacks)
    module = AutoencoderModule(
        model=instantiate(unweighted(cfg.model) if resume_from else cfg.model),
        loss=loss,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.get("scheduler")),
        metrics={name: metric for name, metric in metrics.items() if metric.in_validation},
        seed=cfg.seed,
        config=plain(cfg),
        output_dir=cfg.output_dir,
        adversary=build_adversary(cfg),
    )
    before = validation_psnr(trainer, module, data) if cfg.validate_first and resume_from is None else None
    trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    document = measure(
        model_to_measure(callbacks, module, cfg),
        instantiate(cfg.data),
        cfg,
        metrics,
        training={
            "steps": trainer.global_step,
            "seconds_per_step": None if timer is None else timer.seconds_per_step,
            "validation_psnr_before": before,
            "validation_psnr_best": None if best is None else as_float(best.best_model_score),
        },
    )
    close_loggers(trainer.loggers, document, trainer.global_step)
    return document


def build_adversary(cfg: DictConfig) -> PatchAdversary | None:
    """The adversary, if there is to be one; whether there is does not change what else the seed gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return instantiate(cfg.adversary)


def validation_psnr(trainer: L.Trainer, module: AutoencoderModule, data: ClipDataModule) -> float | None:
    """What the weights give as they are: the first point of the curve. None without validation clips."""
    if not data.has("val"):
        return None
    trainer.validate(module, data, verbose=False)
    return as_float(trainer.callback_metrics.get("val/psnr"))


def first_of(kind: type[Kind], callbacks: Iterable[L.Callback]) -> Kind | None:
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def build_trainer(cfg: DictConfig, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer with the loggers and callbacks that were chosen, none where none were.

    Raises:
        UserError: Lightning does not take these settings together.
    """
    loggers = open_loggers(cfg)
    options: dict[str, Any] = {"logger": loggers or False, "callbacks": callbacks}
    if not loggers:  # it has nowhere to write to, and would refuse
        options["callbacks"] = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    if first_of(Checkpoint, callbacks) is None:
        options["enable_checkpointing"] = False  # else Lightning adds a callback of its own
    try:
        return instantiate(cfg.trainer, **options)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError | MisconfigurationException) and not isinstance(cause, UserError):
            raise UserError(f"Lightning does not take these settings of trainer: {first_line(cause)}") from error
        raise


def model_to_measure(callbacks: Iterable[L.Callback], module: AutoencoderModule, cfg: DictConfig) -> LoadedModel:
    """The best checkpoint of this run, not of an earlier one in its folder; else the last; else what training ended with."""
    best, last = first_of(ModelCheckpoint, callbacks), first_of(LastCheckpoint, callbacks)
    for path in ([Path(best.best_model_path)] if best else []) + ([last.path] if last else []):
        if path.is_file():
            return load_trained(path, module.model)
    return LoadedModel(
        module.model.eval(),
        source="the weights at the end of training, which were not saved",
        sha256=None,
        config=plain(cfg),
        weights="raw" if cfg.ema.decay is None else "ema",
    )


def load_trained(path: Path, model: VideoAutoencoder) -> LoadedModel:
    """A checkpoint of this run; a decoder that was distilled is measured with its teacher's encoder."""
    if not isinstance(model, Distillation):
        return load_autoencoder(path)
    teacher = LoadedModel(model.teacher.eval(), "the teacher", None, None)
    return pair(teacher, load_decoder(path))


def as_float(value: Tensor | None) -> float | None:
    return None if value is None else value.item()


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to resume from, read once in full so that a damaged one is refused before anything starts."""
    if cfg.resume == "auto":
        path = find_resumable(Path(cfg.output_dir) / "checkpoints")
        say(f"resume=auto: {f'resuming from {path}' if path else 'nothing to resume from, starting from scratch'}")
    else:
        path = None if cfg.resume is None else to_path(cfg.resume)
        if path is None and any((Path(cfg.output_dir) / "checkpoints").glob("*.ckpt")):
            raise UserError(
                f"output_dir={cfg.output_dir} holds the checkpoints of another run, which this one would overwrite: add "
                "resume=auto to continue it, or choose another output_dir."
            )
    if path is not None:
        checkpoint = read_checkpoint(path)
        check_exact(checkpoint, path)
        check_resumable(checkpoint, plain(cfg), path)
    return path

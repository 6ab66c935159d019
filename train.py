"""Train a Temporal Autoencoder, then evaluate its best checkpoint.

python train.py                                              the demo: no download, no GPU, no account
python train.py experiment=ucf101 trainer.devices=8          a named run of conf/experiment/
python train.py -m experiment=ucf101 loss.opl.weight=0,1     a sweep
"""

from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluate import measure
from tae.callbacks import StepTimer
from tae.checkpoint import find_resumable, load_model, read_checkpoint
from tae.cli import hydra_main
from tae.config import check_training, plain
from tae.metrics import lpips_at_hand
from tae.module import AutoencoderModule


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train as configured and return what metrics.json holds: the best checkpoint's evaluation."""
    check_training(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    resume_from = find_checkpoint(cfg)
    data = instantiate(cfg.data)
    loss = instantiate(cfg.loss)
    loggers = list(instantiate(cfg.logger).values())
    callbacks = list(instantiate(cfg.callbacks).values())
    trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks)
    if trainer.is_global_zero:
        data.prepare_data()
        data.setup("fit")
    module = AutoencoderModule(
        model=instantiate(cfg.model, image_vae=None if resume_from else cfg.model.image_vae),
        loss=loss,
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        seed=cfg.seed,
        config=plain(cfg),
        output_dir=cfg.output_dir,
    )
    trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)
    timer = next(callback for callback in callbacks if isinstance(callback, StepTimer))
    perceptual = cfg.loss.perceptual
    return measure(
        load_model(best_checkpoint(Path(cfg.output_dir) / "checkpoints")),
        instantiate(cfg.data),
        cfg,
        lpips_at_hand(perceptual.net, perceptual.weights_path),
        training={"steps": trainer.global_step, "seconds_per_step": timer.seconds_per_step},
    )


def find_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to go on from, read once in full so that a damaged one is refused before anything starts."""
    if cfg.resume is None:
        return None
    if cfg.resume == "auto":
        found = find_resumable(Path(cfg.output_dir) / "checkpoints")
        print(f"resume=auto: {f'going on from {found}' if found else 'nothing to go on from, starting anew'}")
        return found
    read_checkpoint(cfg.resume)
    return Path(cfg.resume)


def best_checkpoint(folder: Path) -> Path:
    """`best.ckpt`, or `last.ckpt` of a run that never validated."""
    best = folder / "best.ckpt"
    return best if best.is_file() else folder / "last.ckpt"


if __name__ == "__main__":
    hydra_main("train")(train)()

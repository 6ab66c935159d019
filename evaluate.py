"""Measure a model by the protocol tae-eval-1: metrics, a table, side-by-side videos.

python evaluate.py ckpt=outputs/.../checkpoints/best.ckpt
python evaluate.py ckpt=FOLDER data=ucf101 data.shards.test='datasets/ucf101/test/*.tar'
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import RichProgressBar
from omegaconf import DictConfig

from data.datamodule import ClipDataModule
from tae.checkpoint import LoadedModel, load_model
from tae.cli import hydra_main
from tae.config import evaluation_data, evaluation_precision, plain, write_config
from tae.evaluation import evaluate_model
from tae.losses import Perceptual
from tae.metrics import lpips_at_hand
from tae.report import print_report, write_report
from tae.saving import EndOnSignal


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `cfg.ckpt` on the test shards and return what metrics.json holds."""
    loaded = load_model(cfg.ckpt)
    write_config(cfg)
    cfg.trainer.precision = evaluation_precision(cfg, loaded.config)
    data = instantiate(evaluation_data(cfg, loaded.config), output_dir=cfg.output_dir)
    lpips = lpips_at_hand(cfg.loss.perceptual.net, cfg.loss.perceptual.weights_path)
    return measure(loaded, data, cfg, lpips)


def measure(
    loaded: LoadedModel,
    data: ClipDataModule,
    cfg: DictConfig,
    lpips: Perceptual | None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the protocol on every process and write the report on the first."""
    data.prepare_data()
    data.setup("test")
    trainer = L.Trainer(
        **instantiate(
            {key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes", "precision", "strategy")}
        ),
        logger=False,
        use_distributed_sampler=False,
        callbacks=[RichProgressBar(), EndOnSignal()],
        default_root_dir=cfg.output_dir,
    )
    data.trainer = trainer
    clips = data.test_dataloader()
    result, videos = evaluate_model(
        trainer, loaded.model, clips, lambda keys: data.eval_dataloader("test", only=keys), lpips
    )
    document: dict[str, Any] = {}
    if trainer.is_global_zero:
        output_dir = Path(cfg.output_dir)
        document = write_report(
            output_dir,
            result,
            videos,
            checkpoint={
                "path": loaded.source,
                "sha256": loaded.sha256,
                "starting_weights": loaded.model.starting_weights,
            },
            config=plain(cfg),
            skipped=clips.skipped,
            training=training,
        )
        print_report(result, output_dir)
    return trainer.strategy.broadcast(document)


if __name__ == "__main__":
    hydra_main("evaluate")(evaluate)()

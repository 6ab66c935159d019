"""The command that encodes videos: from its config to shards of latents."""

from contextlib import closing

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig

from tae.latents.encoding import LatentEncoding, print_encoding, settings_of, settle
from tae.latents.file import DTYPES
from tae.latents.folder_report import write_folder_report
from tae.latents.report import terminal_table
from tae.latents.sources import Reading, batched, find_sources
from tae.latents.stats import LatentStats
from tae.latents.writer import finish
from tae.model.pretrained import load_model
from tae.runtime.console import plain_console
from tae.runtime.devices import missing_accelerator
from tae.runtime.paths import to_path
from tae.runtime.progress import progress_bar
from tae.runtime.schema import check_config
from tae.runtime.settings import Encode


def encode(cfg: DictConfig) -> LatentStats | None:
    """Encode `cfg.source`, or resume it; give the statistics (on the first process).

    Raises:
        UserError: a setting is wrong or differs from those that `cfg.output` was begun with, or no video can be encoded.
    """
    check_config(cfg, Encode, [missing_accelerator])
    output = to_path(cfg.output)
    sources, rejected = find_sources(cfg.source)
    tiling = instantiate(cfg.tiling)
    loaded = load_model(cfg.ckpt, cfg.weights)
    tiling.check(loaded.model.time_factor, loaded.model.space_factor)
    settings = settings_of(cfg, loaded, sources)
    settle(output, settings)
    trainer = L.Trainer(
        **instantiate(cfg.trainer),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=output,
    )
    reading = Reading(
        cfg.resolution, cfg.frame_stride, tiling.tile_pixel_frames, loaded.model.space_factor, cfg.interlaced
    )
    shards = list(batched(sources, cfg.clips_per_shard))
    with (
        progress_bar("clips", shown=trainer.is_global_zero) as progress,
        closing(
            LatentEncoding(loaded.model, tiling, DTYPES[cfg.dtype], output, shards, reading, cfg.num_workers, progress)
        ) as encoding,
    ):
        trainer.predict(encoding, return_predictions=False)
    trainer.strategy.barrier()
    if not trainer.is_global_zero:
        return None
    checkpoint = {"path": loaded.source, "sha256": loaded.sha256, "encoder": loaded.encoder}
    stats, rejected = finish(output, settings, len(shards), checkpoint, rejected)
    print_encoding(stats, rejected, output)
    if cfg.report.latents:
        plain_console().print(terminal_table(write_folder_report(output)))
    return stats

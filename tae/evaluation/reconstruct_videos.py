"""The command that reconstructs videos: from its config to files and a table."""

from pathlib import Path

import torch
from av import FFmpegError
from hydra.utils import instantiate
from lightning.fabric import Fabric
from omegaconf import DictConfig, OmegaConf

from tae.evaluation.reconstruction import (
    Excerpt,
    VideoOutcome,
    outcomes_table,
    plan_outputs,
    reconstruct,
    write_latents,
)
from tae.model.codec import TileableCodec
from tae.model.interface import VideoAutoencoder
from tae.model.onnx_codec import OnnxCodec
from tae.model.pretrained import load_model
from tae.model.pretrained_decoder import load_decoder, pair
from tae.model.tiling import Tiling
from tae.runtime.console import plain_console
from tae.runtime.devices import missing_accelerator
from tae.runtime.errors import UserError
from tae.runtime.files import check_writable
from tae.runtime.paths import to_path
from tae.runtime.progress import progress_bar, stage
from tae.runtime.schema import check_config
from tae.runtime.settings import Reconstruct


def reconstruct_videos(cfg: DictConfig) -> list[VideoOutcome]:
    """Reconstruct every video of `cfg.source`; the ones that fail are named, the rest goes on.

    Raises:
        UserError: nothing to do, or at least one video failed.
    """
    check_config(cfg, Reconstruct, [missing_accelerator, unused_with_onnx])
    output = to_path(cfg.output)
    outputs = plan_outputs(to_path(cfg.source), output)
    excerpt = Excerpt(cfg.start, cfg.num_frames, cfg.resolution)
    check_writable(output, "output")
    tiling = instantiate(cfg.tiling)
    fabric = Fabric(accelerator=cfg.trainer.accelerator, devices=1, precision=cfg.trainer.precision)
    with stage(f"reading {cfg.ckpt}"):
        model = load_codec(cfg, tiling, fabric.device)
    tiling.check(model.time_factor, model.space_factor, decoding=not cfg.latents_only)
    outcomes, failed = [], 0
    with progress_bar("frames") as progress, fabric.autocast():
        for source, stem in outputs.items():
            task = progress.add_task(source.name, total=None)
            try:
                if cfg.latents_only:
                    outcome = write_latents(model, source, stem, tiling, progress, task, cfg.interlaced, excerpt)
                else:
                    panels = cfg.side_by_side, cfg.difference
                    outcome = reconstruct(model, source, stem, tiling, progress, task, *panels, cfg.interlaced, excerpt)
                outcomes.append(outcome)
            except (UserError, FFmpegError) as error:  # a file's fault, in reading or in writing, costs that file
                failed += 1
                progress.remove_task(task)
                progress.console.print(f"error: {_named(source, error)}", soft_wrap=True)
    if outcomes:
        plain_console().print(outcomes_table(outcomes))
    if failed:
        raise UserError(f"{failed} of {len(outputs)} videos could not be reconstructed; see above.")
    return outcomes


def unused_with_onnx(cfg: DictConfig) -> str | None:
    """Settings of the models of PyTorch, which exported graphs have no use for."""
    usual = {"weights": None, "decoder": None, "trainer.precision": "32-true"}
    given = [f"{key}={value}" for key, plain in usual.items() if (value := OmegaConf.select(cfg, key)) != plain]
    given += [f"trainer.accelerator={name}" for name in [cfg.trainer.accelerator] if name not in ("auto", "cpu")]
    if cfg.runtime != "onnx" or not given:
        return None
    return f"runtime=onnx runs both graphs of an export on the processor in float32: leave out {', '.join(given)}."


def load_codec(cfg: DictConfig, tiling: Tiling, device: torch.device) -> TileableCodec:
    """What `cfg.ckpt` names, run by `cfg.runtime`.

    Raises:
        UserError: it cannot be loaded, or was exported for other tiles.
    """
    if cfg.runtime == "torch":
        return load_pair(cfg).to(device)
    codec = OnnxCodec(to_path(cfg.ckpt))
    codec.description.check_tiling(tiling)
    return codec


def load_pair(cfg: DictConfig) -> VideoAutoencoder:
    """The encoder of `cfg.ckpt` with its own decoder, or with that of `cfg.decoder`.

    Raises:
        UserError: one of them cannot be loaded, or the two have different encoders.
    """
    loaded = load_model(cfg.ckpt, cfg.weights)
    return loaded.model if cfg.decoder is None else pair(loaded, load_decoder(cfg.decoder)).model


def _named(source: Path, error: UserError | FFmpegError) -> str:
    """What went wrong, with the file's name."""
    return str(error) if isinstance(error, UserError) else f"{source} cannot be written again: {error.strerror}"

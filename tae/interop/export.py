"""The command that exports a model: from its config to a folder and the hub."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from tae.interop.decoder_export import export_decoder
from tae.interop.diffusers_adapter import stats_beside
from tae.interop.graphs import check_format, describe_graphs, export_graphs
from tae.interop.model_card import CARD, find_metrics, model_card
from tae.interop.repository import check_stats, prepare_repository, upload
from tae.latents.file import DTYPES
from tae.latents.stats import LatentStats
from tae.model.pretrained import CONFIG_FILE, load_autoencoder, of_ours
from tae.model.pretrained_decoder import read_tiny_decoder
from tae.runtime.errors import UserError
from tae.runtime.files import apply_umask, check_empty, check_writable, write_text
from tae.runtime.paths import to_path
from tae.runtime.progress import stage
from tae.runtime.schema import check_config
from tae.runtime.settings import Export


def export(cfg: DictConfig) -> Path:
    """Write the folder `cfg.output` and, where asked, upload it.

    Raises:
        UserError: a setting is wrong, the metrics are another checkpoint's, or the hub refuses.
    """
    check_config(cfg, Export)
    output = to_path(cfg.output)
    if cfg.format != "safetensors":
        check_format(cfg.format)
    check_empty(output)
    stats = None if cfg.latents is None else LatentStats.read(cfg.latents)
    tiling = instantiate(cfg.tiling)
    check_writable(output, "output")
    with stage(f"reading {cfg.ckpt}"):
        decoder = read_tiny_decoder(cfg.ckpt, cfg.weights)
        if decoder is not None:
            return export_decoder(decoder, cfg)
        loaded = load_autoencoder(cfg.ckpt, cfg.weights)
    ours = of_ours(loaded)
    if cfg.format != "safetensors":
        if ours is None:
            raise UserError(
                f"format={cfg.format}: graphs are made of our own networks; {loaded.model.name} of diffusers is exported "
                "as format=safetensors, the folder for its from_pretrained."
            )
        tiling.check(ours.model.time_factor, ours.model.space_factor, decoding=True)
    metrics = find_metrics(loaded, cfg.metrics_json)
    check_stats(loaded, stats, cfg.latents)
    if stats is None and ours is not None and (beside := stats_beside(cfg.ckpt)):
        stats = LatentStats.read(beside)
    if cfg.push:
        prepare_repository(cfg.repo, cfg.private)  # a refusal should come before the work
    output.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(loaded.model).to(DTYPES[cfg.dtype]).save_pretrained(output)
    for path in output.glob("*.safetensors"):
        apply_umask(path)
    graphs = []
    if cfg.format != "safetensors" and ours is not None:
        with stage(f"tracing encoder and decoder as {cfg.format}"):
            graphs = export_graphs(ours.model, output, cfg.format)
        describe_graphs(ours, stats, graphs, cfg.format, tiling).write(output)
    if stats is not None:
        stats.write(output)
        add_to_config(output / CONFIG_FILE, stats.conventions)
    write_text(
        output / CARD, model_card(loaded, metrics, stats, graphs, cfg.repo or output.name, cfg.license, cfg.dtype)
    )
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if cfg.push:
        with stage(f"uploading to {cfg.repo}"):
            upload(output, cfg.repo)
    return output


def add_to_config(path: Path, more: Mapping[str, Any]) -> None:
    """Write further entries into a config.json, for programs that read it alone; loading the model ignores them."""
    write_text(path, json.dumps(json.loads(path.read_text(encoding="utf-8")) | dict(more), indent=2) + "\n")

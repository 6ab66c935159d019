"""Evaluation on plain videos, a folder or a list: they are checked as for a training, and written as shards of their own."""

from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from data.ingest.pipeline import prepare
from data.ingest.run import print_preparation
from data.processes.pool import Engine
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.config import plain
from tae.runtime.ownership import is_first_process
from tae.runtime.paths import to_path

SHARDS = "source"  # in the output folder


def check_plain_videos(cfg: DictConfig) -> str | None:
    """A source that is not there, or beside shards."""
    if cfg.source is None:
        return None
    findings = []
    if not to_path(cfg.source).exists():
        findings.append(f"source={cfg.source} does not exist. Give a folder of videos, or a list of them.")
    if "_target_" not in cfg.data and (cfg.data.get("shards") or {}).get("test") is not None:
        findings.append(f"source={cfg.source} and data.shards.test both say what to measure on: give one of them.")
    return "\n".join(findings) or None


def prepare_source(cfg: DictConfig, settings: DictConfig) -> DictConfig:
    """Write the videos of `cfg.source` as test shards into the output folder, unless an earlier call has.

    Args:
        settings: of the data set whose window, resolution and workers are kept.

    Returns:
        The data settings that read these shards.

    Raises:
        UserError: none of the videos can be used.
    """
    folder = OmegaConf.load(Path(CONFIG_FOLDER) / "data" / "folder.yaml")
    defaults = OmegaConf.load(Path(CONFIG_FOLDER) / "prepare.yaml")
    output = Path(cfg.output_dir) / SHARDS
    lock = Path(cfg.output_dir) / f".{SHARDS}.lock"
    with FileLock(lock):  # of several processes the first one works, the others find its work
        outcome = prepare(
            dataset="folder",
            source=to_path(cfg.source),
            output=output,
            split="test",
            splits_dir=None,
            test=0.0,
            val=0.0,
            seed=0,
            timeout=defaults.timeout,
            shard_mb=defaults.shard_mb,
            encoding=None,
            engine=Engine(),
            shuffle=False,
        )
    if is_first_process():
        print_preparation(outcome, output)
    shards: Any = {"train": None, "val": None, "test": sorted(map(str, (output / "test").glob("*.tar")))}
    kept = {name: value for name, value in plain(settings).items() if name in folder and name != "shards"}
    return OmegaConf.merge(folder, kept, {"shards": shards})  # type: ignore[return-value]

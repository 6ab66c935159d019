"""The command that prepares shards: from its config to the pipeline, and the table at the end."""

import signal
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from data.ingest.download import download_ucf101
from data.ingest.merging import DUPLICATE
from data.ingest.pipeline import Preparation, prepare
from data.ingest.shots import Encoding
from data.ingest.sources import Choice
from data.processes.pool import Engine
from tae.runtime.console import plain_console
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Prepare

REASONS_SHOWN = 12


def print_preparation(outcome: Preparation, output: Path) -> None:
    """Print what was accepted and, by reason, what was not."""
    table = Table("result", "files", title=f"shards in {output}")
    for name, clips in outcome.accepted.items():
        table.add_row(f"accepted: {name}", str(clips))
    reasons = Counter(
        f"{DUPLICATE} another file" if reason.startswith(DUPLICATE) else reason for _, reason in outcome.rejected
    )
    for reason, files in reasons.most_common(REASONS_SHOWN):
        table.add_row(f"rejected: {reason}", str(files))
    if others := reasons.total() - sum(files for _, files in reasons.most_common(REASONS_SHOWN)):
        table.add_row("rejected: other reasons", str(others))
    if reasons:
        table.caption = f"each file and its reason: {output / 'rejected.csv'}"
    plain_console().print(table)


def prepare_shards(cfg: DictConfig) -> None:
    """Call `prepare` with the config's values, then print the table."""
    check_config(cfg, Prepare)
    source, output = to_path(cfg.source), to_path(cfg.output)
    splits_dir = to_path(cfg.splits_dir) if cfg.splits_dir else None
    if cfg.download and cfg.dataset != "ucf101":
        raise UserError(f"download=true serves dataset=ucf101 alone, not dataset={cfg.dataset}.")
    if cfg.shots and not cfg.reencode:
        raise UserError("shots=true needs reencode=true: without re-encoding a file can only be cut at its keyframes.")
    encoding = Encoding(cfg.shots, cfg.shot_threshold, cfg.min_shot, cfg.short_side, cfg.gop, cfg.crf, cfg.interlaced)
    engine = Engine(cfg.engine, cfg.workers, cfg.dask_address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the workers too, as Ctrl-C does
    try:
        if cfg.download:
            source, lists = download_ucf101(source, cfg.download_from.videos, cfg.download_from.lists)
            splits_dir = splits_dir or lists
        outcome = prepare(
            dataset=cfg.dataset,
            source=source,
            output=output,
            split=cfg.split,
            splits_dir=splits_dir,
            test=cfg.test,
            val=cfg.val,
            seed=cfg.seed,
            timeout=cfg.timeout,
            shard_mb=cfg.shard_mb,
            encoding=encoding if cfg.reencode else None,
            engine=engine,
            interlaced=cfg.interlaced,
            decoder=cfg.decoder,
            shuffle=cfg.shuffle,
            frame_rate=cfg.frame_rate,
            choice=Choice(
                columns=dict(cfg.columns),
                explode=tuple(cfg.explode),
                root=None if cfg.root is None else to_path(cfg.root),
                captions=cfg.captions,
                group_pattern=cfg.group_pattern,
            ),
        )
    except KeyboardInterrupt as interrupt:
        raise UserError("Stopped. What is done is kept: repeat the command to resume.") from interrupt
    print_preparation(outcome, output)

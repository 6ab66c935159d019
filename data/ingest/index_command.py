"""The command that indexes shards of others: from its config to the indexes, and what was left out."""

import os

from omegaconf import DictConfig

from data.ingest.indexing import folders_of, index_shards, refuse_replacing
from data.ingest.rejected import REJECTED
from data.processes.pool import Engine
from data.shards.format import INDEX
from data.shards.patterns import expand_patterns
from data.storage.address import is_remote
from data.storage.remote import Access
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Index

FAILURES_SHOWN = 5


def index_command(cfg: DictConfig) -> None:
    """Index `cfg.shards`: beside the shards, a folder after the other, or all of them in `cfg.output`."""
    check_config(cfg, Index)
    access = Access(cfg.read_tries, cfg.read_timeout)
    urls = expand_patterns(cfg.shards if isinstance(cfg.shards, str) else list(cfg.shards), "shards", access)
    engine = Engine(cfg.engine, cfg.workers, cfg.dask_address)
    if cfg.output is None:
        folders = folders_of(urls)
    else:
        folders = {to_path(cfg.output): [url if is_remote(url) else os.path.realpath(url) for url in urls]}
    faults: list[str] = []
    for folder, members in folders.items():  # before the first one takes hours
        refuse_replacing(members, folder, cfg.output is not None)
    for folder, members in folders.items():
        try:
            found = index_shards(members, folder, cfg.output is not None, cfg.columns, access, cfg.timeout, engine)
        except UserError as error:  # the other folders are indexed all the same
            faults.append(str(error))
            continue
        print(f"{folder / INDEX}: {found.samples} samples in {found.shards} shards")
        for reason, count in found.rejected.most_common(FAILURES_SHOWN):
            print(f"left out: {count} samples: {reason}")
        if found.rejected:
            print(f"each of them: {folder / REJECTED}")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))
    if cfg.output is not None:
        print(f"train on them with data.index={cfg.output}")

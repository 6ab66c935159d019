"""The command that verifies shards: from its config to what is wrong, and how well the clips mix."""

from omegaconf import DictConfig

from data.ingest.mixing import describe_mixing
from data.ingest.verification import find_folders, shards_of, verify
from data.processes.pool import Engine
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Verify


def verify_shards(cfg: DictConfig) -> None:
    """Verify every folder of shards in `cfg.shards`, and say that nothing is wrong and how well the clips mix.

    Raises:
        UserError: with the list of what is wrong, or a setting is out of its range.
    """
    check_config(cfg, Verify)
    sizes = {"batch_size": cfg.batch_size, "shuffle_buffer": cfg.shuffle_buffer, "readers": cfg.readers}
    engine = Engine(cfg.engine, cfg.workers, cfg.dask_address)
    folders = find_folders(to_path(cfg.shards))
    problems = [problem for folder in folders for problem in verify(folder, cfg.decode, cfg.timeout, engine)]
    if problems:
        raise UserError(f"{cfg.shards}: {len(problems)} things are wrong.\n" + "\n".join(problems))
    for folder in folders:
        print(f"{folder}: as the index says" + ", every video decodes" * cfg.decode)
        for line in describe_mixing(shards_of(folder), **sizes):
            print(f"{folder}: {line}")

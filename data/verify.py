"""Are shards what their index says, and can their videos be read?

python -m data.verify shards=DIR
"""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from data.ingest.verification import find_folders, verify
from data.processes.pool import Crew
from tae.runtime.cli import hydra_main
from tae.runtime.errors import UserError


@hydra_main("verify")
def main(cfg: DictConfig) -> None:
    """The command: ends with the list of what is wrong and exit code 1, or says that nothing is."""
    if cfg.shards is None:
        raise UserError("shards is not set. Give a folder of shards: shards=DIR.")
    crew = Crew(cfg.engine, cfg.workers, cfg.scheduler)
    folders = find_folders(Path(cfg.shards))
    problems = [problem for folder in folders for problem in verify(folder, cfg.decode, cfg.timeout, crew)]
    if problems:
        raise UserError(f"{cfg.shards}: {len(problems)} things are wrong.\n" + "\n".join(problems))
    for folder in folders:
        Console().print(f"{folder}: as the index says" + ", every video decodes" * cfg.decode, soft_wrap=True)


if __name__ == "__main__":
    main()

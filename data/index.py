"""An index for WebDataset shards that others wrote, so that they can be trained on as they are.

python -m data.index shards=PATTERN
"""

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("index")
def main(cfg: DictConfig) -> None:
    """Look through the shards and write their index."""
    from data.ingest.index_command import index_command

    index_command(cfg)


if __name__ == "__main__":
    main()

"""What is in shards: a table, and a picture with the middle frames of some clips.

python -m data.inspect shards=DIR
"""

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("inspect")
def main(cfg: DictConfig) -> None:
    """Print the table and write a contact sheet for each folder of shards."""
    from data.ingest.inspection import inspect_shards

    inspect_shards(cfg)


if __name__ == "__main__":
    main()

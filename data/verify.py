"""Are shards what their index says, and can their videos be read?

python -m data.verify shards=DIR
"""

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("verify")
def main(cfg: DictConfig) -> None:
    """End with the list of what is wrong and exit code 1, or say that nothing is."""
    from data.ingest.verify_command import verify_shards

    verify_shards(cfg)


if __name__ == "__main__":
    main()

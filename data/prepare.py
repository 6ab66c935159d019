"""Videos and images to shards: check every file, split, write, report.

python -m data.prepare dataset=ucf101|mixkit|folder|frames|images source=DIR output=DIR
"""

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("prepare")
def main(cfg: DictConfig) -> None:
    """Prepare the shards of `cfg.source` in `cfg.output`."""
    from data.ingest.run import prepare_shards

    prepare_shards(cfg)


if __name__ == "__main__":
    main()

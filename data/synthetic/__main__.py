"""Generated clips as a data set to be kept.

python -m data.synthetic output=DIR
"""

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("synthetic")
def main(cfg: DictConfig) -> None:
    """Write generated clips as shards that any data group can name."""
    from data.synthetic.datamodule import write_synthetic

    write_synthetic(cfg)


if __name__ == "__main__":
    main()

"""A network that folds (model=haar) as the best linear codec of its blocks, to train from in place of random weights.

python -m tae.pca data=folder output=starts/haar
python train.py model=haar init_from=starts/haar
"""

from pathlib import Path

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("pca")
def main(cfg: DictConfig) -> Path:
    """Fit the codec to training clips and write the model to the folder `cfg.output`."""
    from tae.training.linear_start import write_linear_start

    return write_linear_start(cfg)


if __name__ == "__main__":
    main()

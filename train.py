"""Train a Temporal Autoencoder: `tae/train.py` is the command, `tae/training/run.py` what it does."""

from tae.train import main, train

__all__ = ["main", "train"]

if __name__ == "__main__":
    main()

"""Train a Temporal Autoencoder, then evaluate its best checkpoint.

python train.py                                              the demo: no download, no GPU, no account
python train.py experiment=ucf101 trainer.devices=8          a named run of conf/experiment/
python train.py -m experiment=ucf101 loss.opl.weight=0,1     a sweep

`tae-train` and `python -m tae.train` are the same command, from any folder.
"""

from typing import Any

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train as configured and return what metrics.json holds: the best checkpoint's evaluation."""
    from tae.training import run

    return run.train(cfg)


GROUPS = ("data", "model", "experiment")  # a command line that chooses of none of these runs the demo
main = hydra_main("train", alone="experiment=demo", unless=GROUPS)(train)

if __name__ == "__main__":
    main()

"""Train a Temporal Autoencoder, then evaluate its best checkpoint.

python train.py                                              the demo: no download, no GPU, no account
python train.py experiment=ucf101 trainer.devices=8          a named run of conf/experiment/
python train.py -m experiment=ucf101 loss.opl.weight=0,1     a sweep
"""

from tae.runtime.cli import hydra_main
from tae.training.run import train

if __name__ == "__main__":
    hydra_main("train")(train)()

"""Measure a model by the protocol tae-eval-1: metrics, a table, a page with synchronised videos.

python evaluate.py ckpt=outputs/.../checkpoints/best.ckpt
python evaluate.py ckpt=diffusers:AutoencoderKLWan:FOLDER data=ucf101       another autoencoder, measured the same way
python evaluate.py -m ckpt=FOLDER,diffusers:AutoencoderKLWan:FOLDER data=ucf101       both, on one page
python evaluate.py ckpt=FOLDER data=ucf101 data.shards.test='datasets/ucf101/test/*.tar'
"""

from tae.evaluation.run import evaluate
from tae.runtime.cli import hydra_main

if __name__ == "__main__":
    hydra_main("evaluate")(evaluate)()

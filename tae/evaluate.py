"""Measure a model by the protocol tae-eval-2: metrics, a table, a page with synchronised videos.

python evaluate.py ckpt=outputs/.../checkpoints/best.ckpt
python evaluate.py ckpt=diffusers:AutoencoderKLWan:FOLDER data=ucf101       another autoencoder, measured the same way
python evaluate.py -m ckpt=FOLDER,diffusers:AutoencoderKLWan:FOLDER data=ucf101       both, on one page
python evaluate.py ckpt=FOLDER data=ucf101 data.shards.test='datasets/ucf101/test/*.tar'

`tae-evaluate` and `python -m tae.evaluate` are the same command, from any folder.
"""

from typing import Any

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate as configured and return what metrics.json holds."""
    from tae.evaluation import run

    return run.evaluate(cfg)


main = hydra_main("evaluate")(evaluate)

if __name__ == "__main__":
    main()

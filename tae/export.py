"""A model to share: weights, config and a card that says how good it is, in a folder and on the hub.

python -m tae.export ckpt=PATH output=DIR
python -m tae.export ckpt=PATH output=DIR format=onnx
python -m tae.export ckpt=PATH output=DIR push=true repo=OWNER/NAME
"""

from pathlib import Path

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("export")
def main(cfg: DictConfig) -> Path:
    """Write the folder `cfg.output` and, where asked, upload it."""
    from tae.interop.export import export

    return export(cfg)


if __name__ == "__main__":
    main()

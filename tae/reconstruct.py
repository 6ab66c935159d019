"""Videos of any length and size through the autoencoder and back, piece by piece.

python -m tae.reconstruct ckpt=PATH source=VIDEO_OR_FOLDER output=DIR
"""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main

if TYPE_CHECKING:
    from tae.evaluation.reconstruction import VideoOutcome


@hydra_main("reconstruct")
def main(cfg: DictConfig) -> "list[VideoOutcome]":
    """Reconstruct every video of `cfg.source`; the ones that fail are named, the rest goes on."""
    from tae.evaluation.reconstruct_videos import reconstruct_videos

    return reconstruct_videos(cfg)


if __name__ == "__main__":
    main()

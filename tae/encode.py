"""Videos to latents for training a generator: WebDataset shards, their index and their statistics.

python -m tae.encode ckpt=PATH source=FOLDER_OR_LIST_OR_SHARDS output=DIR

The list of videos is cut into shards before anything is read, so what a shard holds depends neither on how many processes
there are nor on how often the command was stopped. A process works through its shards one by one; a finished one leaves an
entry in `.finished/`, and the last step adds the entries up.
"""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main

if TYPE_CHECKING:
    from tae.latents.stats import LatentStats


@hydra_main("encode")
def main(cfg: DictConfig) -> "LatentStats | None":
    """Encode `cfg.source`, or resume it; give the statistics (on the first process)."""
    from tae.latents.run import encode

    return encode(cfg)


if __name__ == "__main__":
    main()

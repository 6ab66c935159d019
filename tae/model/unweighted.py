"""The same network without its weights: for planning, for checks before a run, and where a checkpoint has them."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tae.model.diffusers.loading import read_config

FROM_WEIGHTS = ("image_vae", "init_from")


def unweighted(model: DictConfig) -> DictConfig:
    """The settings of a model (`conf/model/`), changed so that it is built and no weights are read.

    Raises:
        UserError: the config of a model of diffusers cannot be read.
    """
    changes: dict[str, Any] = {name: None for name in FROM_WEIGHTS if name in model}
    if place := model.get("source"):
        changes |= {"source": None, "config": read_config(model["class_name"], place)}
    # Not as arguments of Hydra's `instantiate`: its own first one is called `config` too.
    with open_dict(model):
        return OmegaConf.merge(model, changes)  # type: ignore[return-value]

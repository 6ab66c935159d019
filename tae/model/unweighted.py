"""The same network without its weights: for planning, for checks before a run, and where a checkpoint has them."""

from collections.abc import Mapping
from typing import Any

from tae.model.diffusers.loading import read_config

FROM_WEIGHTS = ("image_vae", "init_from")


def unweighted(model: Mapping[str, Any]) -> dict[str, Any]:
    """What to change in the settings of a model (`conf/model/`), so that it is built and no weights are read.

    Raises:
        UserError: the config of a model of diffusers cannot be read.
    """
    changes: dict[str, Any] = {name: None for name in FROM_WEIGHTS if name in model}
    if place := model.get("source"):
        changes |= {"source": None, "config": read_config(model["class_name"], place)}
    return changes

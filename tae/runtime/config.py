"""The resolved config: as plain values, and as a file in the run's folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from tae.runtime.errors import UserError
from tae.runtime.files import replacing


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as dicts, lists and plain values.

    Raises:
        UserError: a value that has no default was not given.
    """
    try:
        return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no default: give {error.full_key}=VALUE on the command line.") from error


def write_config(cfg: DictConfig) -> None:
    """Leave the resolved config in the run's folder; Hydra's own copy in `.hydra/` has it as it was written."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        folder = Path(cfg.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.create(plain(cfg)), partial)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"group.name": value} of nested dicts; of a `_target_` the class alone."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            # A class is the same wherever it lives: modules move between versions.
            leaves[f"{prefix}{name}"] = str(value).rpartition(".")[2] if name == "_target_" else value
    return leaves

"""The resolved config: as plain values, and as a file in the run's folder."""

import os
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

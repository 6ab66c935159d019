"""Every part of Hydra that we replace although it is not public: both make a start shorter and change nothing else."""

import copy
from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins


def shorten_start() -> None:
    """Have Hydra parse each YAML file once, and not copy its store of configs for each group that `--help` lists.

    A start composes its config two to four times. The copies of the store are only read: what is loaded from it is a
    copy of its own.
    """
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    Plugins.instance()  # imports the sources of configs
    source: Any = SourcesRegistry.instance().resolve("file")
    if not hasattr(source, "parsed"):
        source.parsed, source.parse = {}, source.load_config
        source.load_config = load_config


def load_config(source: Any, config_path: str) -> Any:
    """A YAML file as Hydra reads it, parsed again only where it has changed."""
    path = Path(source.path, source._normalize_file_name(config_path))
    if not path.is_file():
        return source.parse(config_path)  # says so
    key = source.path, source.provider, config_path, path.stat().st_mtime_ns
    if key not in source.parsed:
        source.parsed[key] = source.parse(config_path)
    return copy.deepcopy(source.parsed[key])

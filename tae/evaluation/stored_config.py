"""Checks across config groups, before any long work, and configs as plain values."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tae.model.bundled import BUNDLED
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.config import plain
from tae.runtime.errors import UserError

# The only classes that a config inside a checkpoint may name, as such a config comes from whoever made the file, and the
# data group of each.
DATA_CLASSES = {"data.datamodule.ClipDataModule": "folder", "data.synthetic.SyntheticDataModule": "synthetic"}
MAX_WINDOW = 2**31  # pixels in a batch that such a config may ask for
MAX_CLIP, MAX_DRAWN = 2**27, 2**31  # pixels of a clip, and of all clips, that it may have generated
MAX_NUMBER = 1e9  # of its other settings


def evaluation_precision(cfg: DictConfig, trained_with: Mapping[str, Any] | None) -> str:
    """The precision of an evaluation: the given one, else the training's, so that both give the same numbers."""
    if cfg.trainer.precision is not None:
        return cfg.trainer.precision
    return "32-true" if trained_with is None else str(trained_with.get("trainer", {}).get("precision", "32-true"))


def evaluation_data(cfg: DictConfig, trained_with: Mapping[str, Any] | None) -> DictConfig:
    """The data settings of an evaluation: the checkpoint's, with what the command line gives put over them.

    Args:
        cfg: the evaluation's config; `data` is either a whole data group or `from_checkpoint`, where null means "as in the
            checkpoint".
        trained_with: the config in the checkpoint, None where there is none.

    Raises:
        UserError: no data settings anywhere, or a class in the checkpoint's config that is not a data set of ours.
    """
    if "_target_" in cfg.data:
        return cfg.data
    given = without_nulls(OmegaConf.to_container(cfg.data, resolve=True))
    if trained_with is None and (cfg.source is not None or cfg.ckpt in BUNDLED):
        files = cfg.source is not None or "shards" in given
        trained_with = {"data": bundled_data(cfg, "folder" if files else "synthetic")}
    if trained_with is None:
        raise UserError(
            f"{cfg.ckpt} carries weights only, no data settings: add data=GROUP (ucf101, mixkit, folder, synthetic)."
        )
    stored = dict(trained_with["data"])
    check_stored_data(stored)
    if stored.pop("allow_pipe", False) and not given.get("allow_pipe"):
        raise UserError(
            "The checkpoint's data config allows pipes. Only the command line can: add data.allow_pipe=true and "
            "data.shards.test=..., or give data=GROUP instead."
        )
    for name, other in (("frame_stride", {"fps": None}), ("fps", {"frame_stride": 1})):
        if name in given:  # either takes the place of the other
            stored |= other
    stored["cache_dir"] = own_cache(stored)
    if stored.get("files"):  # a training's files would take the place of shards that are given now
        stored["files"] = {name: path for name, path in stored["files"].items() if name not in given.get("shards", {})}
    if given.get("allow_pipe"):  # commands may then be run, but only those on the command line
        stored["shards"] = {}
    for name, value in given.items():
        print(f"data.{name}: {value} (the checkpoint's run had {stored.get(name)})")
    return OmegaConf.merge(stored, given)  # type: ignore[return-value]


def own_cache(stored: Mapping[str, Any]) -> str | None:
    """Where a checkpoint's data may be cached: as in its data group. It cannot name a folder to be written to."""
    own = OmegaConf.load(Path(CONFIG_FOLDER) / "data" / f"{DATA_CLASSES[stored['_target_']]}.yaml").cache_dir
    if stored.get("cache_dir") not in (None, own):
        print(
            f"data.cache_dir: {own} (the checkpoint's run had {stored['cache_dir']}; give data.cache_dir to have another)"
        )
    return own


def bundled_data(cfg: DictConfig, group: str) -> dict[str, Any]:
    """A data group for the bundled weights, which are measured on generated clips unless shards are given."""
    settings = OmegaConf.load(Path(CONFIG_FOLDER) / "data" / f"{group}.yaml")
    print(f"ckpt={cfg.ckpt} comes without data settings: data={group}")
    return plain(OmegaConf.create({"data": settings, "seed": cfg.seed, "output_dir": cfg.output_dir}))["data"]


def check_stored_data(stored: Mapping[str, Any]) -> None:
    """Refuse data settings of a checkpoint that would run code, or allocate without bounds.

    Raises:
        UserError: a class outside `DATA_CLASSES`, anything below it that Hydra would call, or absurd sizes.
    """
    if stored.get("_target_") not in DATA_CLASSES or has_directive({"data": {**stored, "_target_": None}}):
        raise UserError(
            f"The checkpoint's data config names the class {stored.get('_target_')}, or has calls further below; allowed is "
            f"one of {', '.join(DATA_CLASSES)} alone. It is not run; give data=GROUP instead."
        )
    window = [stored.get(name, 1) for name in ("batch_size", "num_frames", "resolution", "resolution")]
    if not all(isinstance(size, int) and size > 0 for size in window) or math.prod(window) > MAX_WINDOW:
        raise UserError(f"The checkpoint's data config asks for batches of {window} pixels; give data=GROUP instead.")
    if not all(abs(number) <= MAX_NUMBER for number in numbers_in(stored)):  # not ">", which NaN would pass
        raise UserError(f"The checkpoint's data config has a number beyond {MAX_NUMBER:.0e}; give data=GROUP instead.")
    check_drawn(stored)


def check_drawn(stored: Mapping[str, Any]) -> None:
    """Refuse to generate clips without bounds.

    Raises:
        UserError: the clips, or one of them, have more pixels than are allowed, or the numbers are none.
    """
    clips = stored.get("num_clips", {"none": 1})
    counts: list[Any] = list(clips.values()) if isinstance(clips, Mapping) else [None]
    frames, side = (stored.get(name, 1) for name in ("clip_frames", "clip_size"))
    numbers = all(isinstance(size, int) and size > 0 for size in (*counts, frames, side))
    if not numbers or frames * side**2 > MAX_CLIP or frames * side**2 * sum(counts) > MAX_DRAWN:
        raise UserError(
            f"The checkpoint's data config asks for num_clips={clips} generated clips of {frames} frames and {side} rows; "
            f"allowed are {MAX_CLIP:.0e} pixels in a clip and {MAX_DRAWN:.0e} in all. Give data=GROUP instead."
        )


def numbers_in(node: Any) -> list[int | float]:
    """Every number of a nested config."""
    if isinstance(node, Mapping | list | tuple):
        return [
            number for child in (node.values() if isinstance(node, Mapping) else node) for number in numbers_in(child)
        ]
    return [node] if isinstance(node, int | float) else []


def has_directive(node: Any) -> bool:
    """Whether a nested config has a key that Hydra's `instantiate` acts upon, with a value."""
    if isinstance(node, Mapping):
        return any(
            (str(key).startswith("_") and value is not None) or has_directive(value) for key, value in node.items()
        )
    return isinstance(node, list | tuple) and any(has_directive(item) for item in node)


def without_nulls(node: Any) -> Any:
    """The same nested dict without entries that are null or empty."""
    if not isinstance(node, Mapping):
        return node
    kept = {key: without_nulls(value) for key, value in node.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}

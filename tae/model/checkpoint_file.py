"""Reading a training checkpoint that may come from a stranger: nothing in it is run.

A checkpoint carries, beside Lightning's own entries, `architecture` (the constructor's arguments of the model) and `config`
(the resolved configuration), which may hold plain values only. Of a run with a moving average of its weights (`ema.decay`),
`state_dict` holds the average and `raw_weights` the weights that were trained.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tae.model.corruption import CORRUPTION_PREFIX
from tae.runtime.errors import UserError, first_line
from tae.runtime.paths import to_path

MODEL_PREFIX, RAW_WEIGHTS = "model.", "raw_weights"
MAX_DEPTH, MAX_VALUES = 20, 10_000  # of the config in a checkpoint; ours has 4 and about 150


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything that is in it.

    Raises:
        UserError: the file is missing, damaged (down to a single bit), or no checkpoint of this framework.
    """
    path = to_path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. Training writes them to OUTPUT_DIR/checkpoints/.")
    try:
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a forged file can make the reader raise anything
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is truncated, or something else ({first_line(error)}). "
            "Give another one, such as last.ckpt or best.ckpt beside it."
        ) from error
    needed = ("state_dict", "architecture", "config")
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(key), dict) for key in needed):
        raise UserError(f"{path} is not a checkpoint of this framework: it lacks one of {', '.join(needed)}.")
    check_plain({key: checkpoint[key] for key in ("architecture", "config")}, path)
    return checkpoint


def check_archive(path: Path) -> None:
    """Refuse an archive whose content is not what was written. torch.load looks at no checksum.

    Raises:
        ValueError, zipfile.BadZipFile: what is wrong with it.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it would unpack to more than its size, which torch.save never writes")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of its part {damaged} is wrong")


def check_plain(values: Mapping[str, Any], source: Path) -> None:
    """Refuse a config that is more than dicts, lists and plain values, resolved.

    Raises:
        UserError: an interpolation, which would be looked up on this machine (`${oc.env:...}`); an object; or more, or
            deeper, than any config of ours.
    """
    todo: list[tuple[Any, int]] = [(values, 0)]
    seen = 0
    while todo:
        value, depth = todo.pop()
        seen += 1
        if isinstance(value, Mapping):
            todo += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple):
            todo += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and "${" in value:
            raise UserError(
                f"The config in {source} has an interpolation, {value!r}. It is not looked up; fix the file."
            )
        elif not isinstance(value, str | bool | int | float | None):
            raise UserError(f"The config in {source} has a {type(value).__name__}, where plain values are allowed.")
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise UserError(f"The config in {source} is deeper than {MAX_DEPTH} or longer than {MAX_VALUES:,} values.")


def model_weights(checkpoint: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """The autoencoder's own tensors in a training checkpoint, under the autoencoder's names.

    Args:
        kind: "ema" or "raw", which are the same where the training kept no average.
    """
    state = checkpoint["state_dict"]
    weights = {name.removeprefix(MODEL_PREFIX): state[name] for name in state if name.startswith(MODEL_PREFIX)}
    if kind == "raw":
        weights |= checkpoint.get(RAW_WEIGHTS, {})
    return {name: value for name, value in weights.items() if not name.startswith(CORRUPTION_PREFIX)}


def kind_of_weights(checkpoint: Mapping[str, Any], wanted: str | None, source: str | Path) -> str:
    """Which weights to load: the wanted ones, else the average where there is one.

    Raises:
        UserError: the average is wanted and there is none, or the weights beside it are not weights.
    """
    raw = checkpoint.get(RAW_WEIGHTS)
    if wanted == "ema" and raw is None:
        raise UserError(f"{source} holds no moving average, since its training had ema.decay=null: give weights=raw.")
    if raw is not None and not (isinstance(raw, dict) and all(isinstance(value, Tensor) for value in raw.values())):
        raise UserError(f"{source} is damaged: its {RAW_WEIGHTS} are not weights.")
    return wanted or ("raw" if raw is None else "ema")

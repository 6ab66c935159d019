"""Checkpoints: what a training run adds to Lightning's, and strict loading of a model from any of its homes.

A checkpoint carries, beside Lightning's own entries, `architecture` (the constructor's arguments of the model) and `config`
(the resolved configuration). Nothing in it is unpickled: files are read with `weights_only=True`, and a model is built from
plain constructor arguments, never from a class name in the file.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from tae.autoencoder import TemporalAutoencoder
from tae.errors import UserError
from tae.inflate import file_sha256

MODEL_PREFIX = "model."
WEIGHTS_FILE = "model.safetensors"
SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from. `config` is None where no training run stands behind the weights."""

    model: TemporalAutoencoder
    source: str
    sha256: str | None
    config: Mapping[str, Any] | None


def load_model(source: str | Path) -> LoadedModel:
    """Load a model for use, in evaluation mode.

    Args:
        source: a Lightning checkpoint (`.ckpt`), a folder that `save_pretrained` wrote, or a hub repository id.

    Raises:
        UserError: there is no such thing, it is damaged, or it is something else.
    """
    path = Path(source).expanduser()
    if path.is_file():
        checkpoint = read_checkpoint(path)
        model = TemporalAutoencoder(**checkpoint["architecture"])
        load_weights(model, model_weights(checkpoint), path)
        model.starting_weights = checkpoint.get("starting_weights")
        return LoadedModel(model.eval(), str(source), file_sha256(path), checkpoint["config"])
    if path.is_dir():
        return LoadedModel(from_pretrained(path), str(source), file_sha256(path / WEIGHTS_FILE), None)
    model = from_pretrained(source)
    return LoadedModel(model, str(source), file_sha256(Path(hf_hub_download(str(source), WEIGHTS_FILE))), None)


def from_pretrained(source: str | Path) -> TemporalAutoencoder:
    """`TemporalAutoencoder.from_pretrained`, with every failure turned into what the user can do."""
    path = Path(source).expanduser()
    if path.is_dir():
        missing = [name for name in ("config.json", WEIGHTS_FILE) if not (path / name).is_file()]
        if missing:
            raise UserError(
                f"The folder {source} holds no {' and no '.join(missing)}; give one that save_pretrained wrote."
            )
    elif path.suffix or len(str(source).split("/")) != 2:
        raise UserError(
            f"{source}: no such file or folder. Give a checkpoint (.ckpt), a folder that save_pretrained wrote, or a hub "
            "repository id."
        )
    try:
        return TemporalAutoencoder.from_pretrained(path if path.is_dir() else str(source)).eval()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is no local path, and the hub did not give it either ({type(error).__name__}: "
            f"{first_line(error)}). Check the spelling, the network, or `hf auth login` for a private repository."
        ) from error
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source} is not a folder that save_pretrained wrote, or it is damaged: {error}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything that is in it.

    Raises:
        UserError: the file is missing, truncated, or no checkpoint of this framework.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. Training writes them to OUTPUT_DIR/checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is truncated, or something else ({first_line(error)}). "
            "Give another one, such as last.ckpt or best.ckpt beside it."
        ) from error
    needed = ("state_dict", "architecture", "config")
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in needed):
        raise UserError(f"{path} is not a checkpoint of this framework: it lacks one of {', '.join(needed)}.")
    return checkpoint


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The autoencoder's own tensors in a training checkpoint, under the autoencoder's names."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(MODEL_PREFIX): state[name] for name in state if name.startswith(MODEL_PREFIX)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Fill every parameter of `model`, or refuse with the first names and shapes that differ.

    Raises:
        UserError: the weights are of another shape.
    """
    own = model.state_dict()
    differences = [f"{name}: not in the model" for name in weights if name not in own]
    for name, tensor in own.items():
        if name not in weights:
            differences.append(f"{name}: not in the checkpoint")
        elif weights[name].shape != tensor.shape:
            differences.append(f"{name}: checkpoint {tuple(weights[name].shape)}, model {tuple(tensor.shape)}")
    if differences:
        shown = "\n  ".join(islice(differences, SHOWN_DIFFERENCES))
        raise UserError(
            f"{source} does not fit this model: {len(differences)} parameters differ.\n  {shown}\n"
            "Choose the model that it was trained with (model=...), or another checkpoint."
        )
    model.load_state_dict(weights)


def first_line(error: Exception) -> str:
    """What went wrong, short: torch and the hub explain at length."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def find_resumable(folder: Path) -> Path | None:
    """The newest readable checkpoint of an output folder, or None. A damaged one is passed over, and said so."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            read_checkpoint(path)
        except UserError as error:
            print(f"resume=auto passes over a damaged checkpoint: {error}")
        else:
            return path
    return None

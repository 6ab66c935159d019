"""Checkpoints: what a training run adds to Lightning's, and strict loading of a model from any of its homes.

A checkpoint carries, beside Lightning's own entries, `architecture` (the constructor's arguments of the model) and `config`
(the resolved configuration). Whoever made the file may be a stranger: it is read with `weights_only=True`, its config may
hold plain values only, and a model is built from constructor arguments within bounds, of our class or one of diffusers' in a
closed list.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tae.model.autoencoder import TemporalAutoencoder
from tae.model.bundled import BUNDLED
from tae.model.checkpoint_file import kind_of_weights, model_weights, read_checkpoint
from tae.model.checks import MAX_PARAMETERS, differing_parameters
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.diffusers.families import FAMILIES
from tae.model.diffusers.loading import PREFIX, load_weights_and_config, split_source
from tae.model.encoder_identity import encoder_sha256
from tae.model.interface import VideoAutoencoder
from tae.model.tiny_decoder import describes_decoder
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.hub import download, may_be_repository
from tae.runtime.paths import to_path

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
WAYS_TO_GIVE_A_MODEL = (
    "Give a checkpoint (.ckpt), a folder that save_pretrained wrote, a hub repository id, or "
    f"{' or '.join(BUNDLED)}, which is bundled."
)
Network = TypeVar("Network", bound=VideoAutoencoder, covariant=True)
MODEL_WITHOUT_NETWORK = (
    "On a machine with network run `hf download {repo_id} --local-dir DIR`, copy DIR here and give its path in place of "
    "{repo_id}."
)


@dataclass(frozen=True)
class LoadedModel(Generic[Network]):
    """A model and where it came from.

    Args:
        config: None where no training run stands behind the weights.
        weights: "ema" or "raw", which of a checkpoint's weights these are; None where that is not known.
    """

    model: Network
    source: str
    sha256: str | None
    config: Mapping[str, Any] | None
    weights: str | None = None

    @cached_property
    def encoder(self) -> str:
        """The SHA-256 of the encoder, which the latents belong to."""
        return encoder_sha256(self.model.architecture, self.model.state_dict())

    def encoded(self, made_by: Mapping[str, Any]) -> bool:
        """Whether latents are of this encoder, whatever the decoder beside it.

        Args:
            made_by: `checkpoint` of their statistics: {"path", "sha256", "encoder"}; earlier versions wrote no "encoder".
        """
        if "encoder" in made_by:
            return made_by["encoder"] == self.encoder
        return made_by["sha256"] == self.sha256


def load_model(source: str | Path, weights: str | None = None) -> LoadedModel[TemporalAutoencoder]:
    """Load a model for use, in evaluation mode.

    Args:
        source: a Lightning checkpoint (`.ckpt`), a folder that `save_pretrained` wrote, a hub repository id, or `tiny`,
            the bundled weights.
        weights: of a checkpoint: "ema", the moving average, or "raw", the weights that were trained; None: the average
            where there is one.

    Raises:
        UserError: there is no such thing, it is damaged, or it is something else, or it has no average and one is wanted.
    """
    loaded = load_autoencoder(source, weights)
    ours = of_ours(loaded)
    if ours is None:
        raise UserError(
            f"{source} is {loaded.model.name} of diffusers, which is trained, evaluated and exported here; diffusers itself "
            "encodes, tiles and decodes with it: python -m tae.export writes the folder for its from_pretrained."
        )
    return ours


def of_ours(loaded: LoadedModel[VideoAutoencoder]) -> LoadedModel[TemporalAutoencoder] | None:
    """The same, if it is a network of ours."""
    return cast(LoadedModel[TemporalAutoencoder], loaded) if isinstance(loaded.model, TemporalAutoencoder) else None


def load_autoencoder(source: str | Path, weights: str | None = None) -> LoadedModel[VideoAutoencoder]:
    """Load any autoencoder that can be trained here, in evaluation mode.

    Args:
        source: as `load_model` takes it, where a checkpoint may be of any network; or a folder of diffusers, or
            `diffusers:CLASS:SOURCE`.
        weights: as in `load_model`.

    Raises:
        UserError: as from `load_model`.
    """
    path = BUNDLED.get(str(source), to_path(source))
    if path.is_file():
        checkpoint = read_checkpoint(path)
        model = build_model(checkpoint["architecture"], path)
        kind = kind_of_weights(checkpoint, weights, path)
        load_weights(model, model_weights(checkpoint, kind), path)
        model.starting_weights = checkpoint.get("starting_weights")
        return LoadedModel(model.eval(), str(source), file_sha256(path), checkpoint["config"], kind)
    if weights is not None:
        raise UserError(
            f"weights={weights} chooses among those of a training's checkpoint (.ckpt), and {source} is none."
        )
    if (found := class_and_place(source)) is not None:
        other, digest = load_weights_and_config(*found)
        return LoadedModel(other, str(source), digest, None)
    folder = path if path.is_dir() else download_pretrained(str(source))
    return LoadedModel(read_pretrained(folder, source), str(source), file_sha256(folder / WEIGHTS_FILE), None)


def class_and_place(source: str | Path) -> tuple[str, str] | None:
    """Of an autoencoder of diffusers, `diffusers:CLASS:SOURCE` or a folder that states its class; None of anything else.

    Raises:
        UserError: it begins as the former, and is not of this form.
    """
    if str(source).startswith(PREFIX):
        return split_source(str(source))
    path = to_path(source)
    class_name = str(read_config(path).get("_class_name")) if path.is_dir() else ""
    return (class_name, str(path)) if class_name in FAMILIES else None


def download_pretrained(repo_id: str) -> Path:
    """The folder in the hub's cache that holds a repository's model.

    Raises:
        UserError: this is no repository, or the hub does not give it.
    """
    if not may_be_repository(repo_id):
        raise UserError(f"{repo_id}: no such file or folder. {WAYS_TO_GIVE_A_MODEL}")
    paths = [
        download(repo_id, [name], WAYS_TO_GIVE_A_MODEL, MODEL_WITHOUT_NETWORK) for name in (CONFIG_FILE, WEIGHTS_FILE)
    ]
    return paths[-1].parent


def read_pretrained(folder: Path, source: str | Path) -> TemporalAutoencoder:
    """`TemporalAutoencoder.from_pretrained` of a folder, with every failure turned into what the user can do."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"The folder {source} holds no {' and no '.join(missing)}; give one that save_pretrained wrote."
        )
    refuse_decoder(read_config(folder), source)
    try:
        return TemporalAutoencoder.from_pretrained(folder).eval()
    except (OSError, SafetensorError, RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} is not a folder that save_pretrained wrote, or it is damaged: {error}") from error


def build_model(architecture: Mapping[str, Any], source: str | Path) -> VideoAutoencoder:
    """The model that a file describes.

    Raises:
        UserError: these are not the arguments of one, or it would be beyond all bounds.
    """
    refuse_decoder(architecture, source)
    try:
        if "class_name" not in architecture:
            return TemporalAutoencoder(**architecture)
        with torch.device("meta"):
            sketch = DiffusersAutoencoder.from_config(**architecture)
        if sum(parameter.numel() for parameter in sketch.parameters()) > MAX_PARAMETERS:
            raise UserError(f"more than {MAX_PARAMETERS:.0e} parameters.")
        return DiffusersAutoencoder.from_config(**architecture)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} describes no model that can be built: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder; empty where it cannot be read, which loading tells better."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def refuse_decoder(architecture: Mapping[str, Any], source: str | Path) -> None:
    """Refuse a tiny decoder where a whole autoencoder is needed.

    Raises:
        UserError: it is one.
    """
    if describes_decoder(architecture):
        raise UserError(
            f"{source} is a tiny decoder, without an encoder: give its teacher as the model, and this as its decoder "
            "(ckpt=TEACHER decoder=PATH, in `evaluate.py` and `tae.reconstruct`)."
        )


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
        raise UserError(
            f"{source} does not fit this model: {differing_parameters(differences)}"
            "Choose the model that it was trained with (model=...), or another checkpoint; a training starts at "
            "random with init_from=null."
        )
    model.load_state_dict(weights)

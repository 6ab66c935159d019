"""Checkpoints: what a training run adds to Lightning's, and strict loading of a model from any of its homes.

A checkpoint carries, beside Lightning's own entries, `architecture` (the constructor's arguments of the model) and `config`
(the resolved configuration). Whoever made the file may be a stranger: it is read with `weights_only=True`, its config may
hold plain values only, and a model is built from constructor arguments within bounds, never from a class name in the file.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tae.autoencoder import BUNDLED, TemporalAutoencoder
from tae.errors import UserError, first_line
from tae.files import file_sha256
from tae.hub import download, may_be_repository

MODEL_PREFIX = "model."
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
WAYS_TO_GIVE_A_MODEL = (
    "Give a checkpoint (.ckpt), a folder that save_pretrained wrote, a hub repository id, or "
    f"{' or '.join(BUNDLED)}, which comes along."
)
WITHOUT_NETWORK = (
    "On a machine with network run `hf download {repo_id} --local-dir DIR`, copy DIR here and give its path in place of "
    "{repo_id}."
)
SHOWN_DIFFERENCES = 4
# What a resumed run may change without a word, and what it may not change at all.
FREE = (
    *("resume", "init_from", "name", "output_dir", "data.output_dir", "data.cache_dir", "callbacks.", "logger."),
    *("model.image_vae", "model.init_from", "model.gradient_checkpointing", "model.compile_blocks", "validate_first"),
    "trainer.default_root_dir",
)
FIXED = ("model.", "optimizer.", "scheduler")
MAX_DEPTH, MAX_VALUES = 20, 10_000  # of the config in a checkpoint; ours has 4 and about 150


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
        source: a Lightning checkpoint (`.ckpt`), a folder that `save_pretrained` wrote, a hub repository id, or `tiny`,
            the weights that come along.

    Raises:
        UserError: there is no such thing, it is damaged, or it is something else.
    """
    path = BUNDLED.get(str(source), Path(source).expanduser())
    if path.is_file():
        checkpoint = read_checkpoint(path)
        model = build_model(checkpoint["architecture"], path)
        load_weights(model, model_weights(checkpoint), path)
        model.starting_weights = checkpoint.get("starting_weights")
        return LoadedModel(model.eval(), str(source), file_sha256(path), checkpoint["config"])
    folder = path if path.is_dir() else download_pretrained(str(source))
    return LoadedModel(read_pretrained(folder, source), str(source), file_sha256(folder / WEIGHTS_FILE), None)


def download_pretrained(repo_id: str) -> Path:
    """The folder in the hub's cache that holds a repository's model.

    Raises:
        UserError: this is no repository, or the hub does not give it.
    """
    if not may_be_repository(repo_id):
        raise UserError(f"{repo_id}: no such file or folder. {WAYS_TO_GIVE_A_MODEL}")
    paths = [download(repo_id, [name], WAYS_TO_GIVE_A_MODEL, WITHOUT_NETWORK) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    return paths[-1].parent


def read_pretrained(folder: Path, source: str | Path) -> TemporalAutoencoder:
    """`TemporalAutoencoder.from_pretrained` of a folder, with every failure turned into what the user can do."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"The folder {source} holds no {' and no '.join(missing)}; give one that save_pretrained wrote."
        )
    try:
        return TemporalAutoencoder.from_pretrained(folder).eval()
    except (OSError, SafetensorError, RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} is not a folder that save_pretrained wrote, or it is damaged: {error}") from error


def build_model(architecture: Mapping[str, Any], source: str | Path) -> TemporalAutoencoder:
    """The model that a file describes.

    Raises:
        UserError: these are not the arguments of one, or it would be beyond all bounds.
    """
    try:
        return TemporalAutoencoder(**architecture)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} describes no model that can be built: {error}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything that is in it.

    Raises:
        UserError: the file is missing, damaged (down to a single bit), or no checkpoint of this framework.
    """
    path = Path(path).expanduser()
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
                f"The config in {source} has an interpolation, {value!r}. It is not looked up; mend the file."
            )
        elif not isinstance(value, str | bool | int | float | None):
            raise UserError(f"The config in {source} has a {type(value).__name__}, where plain values are allowed.")
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise UserError(f"The config in {source} is deeper than {MAX_DEPTH} or longer than {MAX_VALUES:,} values.")


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
            "Choose the model that it was trained with (model=...), or another checkpoint; a training starts at "
            "random with init_from=null."
        )
    model.load_state_dict(weights)


def find_resumable(folder: Path) -> Path | None:
    """The newest checkpoint of an output folder to go on from, or None where there is none. Others are passed over aloud.

    Raises:
        UserError: there are checkpoints, and none of them will do. Starting anew would write over them.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for path in found:
        try:
            if read_checkpoint(path).get("between_steps"):
                print(f"resume=auto passes over {path}: validated between two batches of one step, it is not exact")
                continue
        except UserError as error:
            print(f"resume=auto passes over a damaged checkpoint: {error}")
        else:
            return path
    if found:
        raise UserError(
            f"resume=auto: none of the {len(found)} checkpoints in {folder} can be used; see above. Move them away to start "
            "anew there."
        )
    return None


def check_resumable(checkpoint: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> None:
    """Compare a run's settings with those of the checkpoint that it goes on from, and say what differs.

    Raises:
        UserError: a setting differs where the checkpoint would win (optimizer, schedule) or would not fit (model).
    """
    was, now = flat(checkpoint["config"]), flat(config)
    changed = [name for name in sorted(was | now) if was.get(name) != now.get(name) and not name.startswith(FREE)]
    lines = {name: f"{name} was {was.get(name)!r} and is {now.get(name)!r}" for name in changed}
    if refused := [lines[name] for name in changed if name.startswith(FIXED)]:
        raise UserError(
            f"{source} was written with other settings: {', '.join(refused)}. A resumed run has its checkpoint's model, "
            "optimizer and schedule: give them as they were, or start a new run from the weights with init_from."
        )
    for line in lines.values():
        print(f"resume: {line}")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"group.name": value} of nested dicts."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves

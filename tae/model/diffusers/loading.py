"""Loading autoencoders of diffusers: `diffusers:CLASS:SOURCE`, the parts of it, and configs alone."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tae.model.diffusers.autoencoder import (
    REFUSALS,
    DiffusersAutoencoder,
    check_counts,
    diffusers_class,
    plain_config,
)
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.paths import to_path

PREFIX = "diffusers:"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
Result = TypeVar("Result")


def split_source(source: str) -> tuple[str, str]:
    """CLASS and SOURCE of `diffusers:CLASS:SOURCE`.

    Raises:
        UserError: it is not of this form.
    """
    _, class_name, place = (*source.split(":", 2), "", "")[:3]
    if not class_name or not place:
        raise UserError(f"{source}: give diffusers:CLASS:SOURCE, where SOURCE is a folder or OWNER/NAME[/SUBFOLDER].")
    return class_name, place


def load_weights_and_config(class_name: str, place: str) -> tuple[DiffusersAutoencoder, str | None]:
    """A model in evaluation mode, its weights in float32, and the SHA-256 of the file that has them.

    Args:
        class_name: one of `FAMILIES`.
        place: a local folder with config.json and safetensors (or one whose `vae` subfolder has them), or OWNER/NAME or
            OWNER/NAME/SUBFOLDER on the hub.

    Raises:
        UserError: another class, no diffusers, no such model, or weights that do not fit it whole.
    """
    kind = diffusers_class(class_name)
    folder, subfolder = locate(place)
    check_class(kind, folder, subfolder, class_name, place)
    options = {"use_safetensors": True, "output_loading_info": True}
    vae, info = asked(place, lambda: kind.from_pretrained(str(folder), **subfolder, **options))
    unfit = [*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if unfit:
        raise UserError(
            f"{place}: {len(unfit)} parameters of its weights and its config.json do not fit together, first "
            f"{sorted(unfit)[0]}. A model that is filled in part would not be what it says."
        )
    vae.register_to_config(_name_or_path="")  # else a folder of this machine is named in what is exported
    weights = Path(folder) / subfolder.get("subfolder", "") / WEIGHTS_FILE
    model = asked(place, lambda: DiffusersAutoencoder(vae.float().eval()))
    return model, file_sha256(weights) if weights.is_file() else None


def read_config(class_name: str, place: str) -> dict[str, Any]:
    """The arguments of a class that stand in a config.json: that file itself, or a place that has one.

    Raises:
        UserError: it cannot be read, or is another class's.
    """
    path = to_path(place)
    if path.is_file():
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not a config.json: {error}") from error
        check_stated(stated, class_name, place)
        return plain_config(stated)
    kind = diffusers_class(class_name)
    return plain_config(check_class(kind, *locate(place), class_name, place))


def check_class(
    kind: Any, folder: str | Path, subfolder: dict[str, str], class_name: str, place: str
) -> Mapping[str, Any]:
    """The config there, if it is of this class."""
    stated = asked(place, lambda: kind.load_config(str(folder), **subfolder))
    check_stated(stated, class_name, place)
    return stated


def check_stated(stated: Any, class_name: str, place: str) -> None:
    """Refuse a config of another class, or out of bounds."""
    other = stated.get("_class_name", class_name) if isinstance(stated, Mapping) else None
    if other != class_name:
        raise UserError(f"{place}: its config.json is of {other}, not of {class_name}. Give another class or place.")
    check_counts(stated)


def asked(place: str, question: Callable[[], Result]) -> Result:
    """The answer of diffusers, whose refusals become what the user can do."""
    from huggingface_hub.errors import HFValidationError

    try:
        return question()
    except (OSError, HFValidationError) as error:
        raise UserError(
            f"{place} cannot be loaded: {' '.join(str(error).split())[:300]} A folder needs config.json and {WEIGHTS_FILE}."
        ) from error
    except REFUSALS as error:
        said = " ".join(str(error).split(". ")[0].split())  # advice for those who call diffusers follows
        raise UserError(
            f"{place} cannot be loaded: its config.json and its weights do not fit together, or one is damaged ({said})."
        ) from error


def locate(place: str) -> tuple[str | Path, dict[str, str]]:
    """Folder or repository, and the arguments that name its subfolder."""
    folder = to_path(place)
    if folder.is_dir():
        inside = not (folder / "config.json").exists() and (folder / "vae" / "config.json").exists()
        return folder, {"subfolder": "vae"} if inside else {}
    owner, _, rest = place.partition("/")
    name, _, subfolder = rest.partition("/")
    if place.startswith((".", "/", "~")) or not name:
        raise UserError(f"{place}: no such folder, and not OWNER/NAME[/SUBFOLDER] of the hub.")
    return f"{owner}/{name}", {"subfolder": subfolder} if subfolder else {}

"""Inflation: fill the spatial part of a Temporal Autoencoder from an image autoencoder.

Two layouts of the same weights are read: diffusers' (`decoder.up_blocks.0.resnets.0.conv1.weight`) and the original Stable
Diffusion one (`first_stage_model.decoder.up.3.block.0.conv1.weight`, with or without a prefix).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tae.model.checks import SHOWN_DIFFERENCES, differing_parameters
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.hub import check_reachable, download, may_be_repository
from tae.runtime.paths import to_path

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
PLACES = [f"{folder}{name}" for folder in ("vae/", "") for name in WEIGHT_FILES]  # in a repository
WAYS_TO_GIVE_WEIGHTS = (
    "Give a diffusers folder, its .safetensors file, the original Stable Diffusion .safetensors file, or a hub repository "
    "id such as stabilityai/stable-diffusion-3.5-medium; or image_vae=null to start from random weights."
)

WEIGHTS_WITHOUT_NETWORK = (
    "On a machine with network run `hf download {repo_id} {place}`, copy the file here and set image_vae to its path; "
    "or image_vae=null to start from random weights."
)


@dataclass(frozen=True)
class InflationReport:
    """What became of every parameter.

    copied:  names in the model that took the image autoencoder's values
    created: names in the model that an image autoencoder does not have (temporal), at their centric initialisation
    ignored: names in the file that belong to no image autoencoder (a whole Stable Diffusion file holds many)
    sha256:  of the file that was read
    """

    source: str
    sha256: str
    copied: tuple[str, ...]
    created: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        first_ignored = f" ({self.ignored[0]}, ...)" if self.ignored else ""
        return (
            f"image autoencoder {self.source}: {len(self.copied)} parameters copied, "
            f"{len(self.created)} temporal ones created, {len(self.ignored)} in the file ignored{first_ignored}"
        )


def inflate(model: nn.Module, path_or_repo_id: str | Path) -> InflationReport:
    """Copy an image autoencoder's weights into `model`, whose temporal parts stay as they are.

    Raises:
        UserError: no such file or repository, no image autoencoder in it, or one of another shape.
    """
    path = find_weights(path_or_repo_id)
    parameters = dict(model.named_parameters())
    created = tuple(name for name in parameters if is_temporal(name))
    try:
        with safe_open(path, framework="pt") as file:
            stored = list(file.keys())
            file_names, prefix = match_names([name for name in parameters if not is_temporal(name)], stored, path)
            check_fit(
                path,
                wanted={file_names[name]: tuple(parameters[name].shape) for name in file_names},
                stored={name: tuple(file.get_slice(name).get_shape()) for name in stored if is_image_vae(name, prefix)},
            )
            with torch.no_grad():
                for name, file_name in file_names.items():
                    parameters[name].copy_(file.get_tensor(file_name).reshape(parameters[name].shape))
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable .safetensors file ({error}). {WAYS_TO_GIVE_WEIGHTS}") from error
    ignored = tuple(sorted(set(stored) - set(file_names.values())))
    return InflationReport(str(path_or_repo_id), file_sha256(path), tuple(file_names), created, ignored)


def is_temporal(name: str) -> bool:
    """Whether a parameter of the video model has no counterpart in an image model."""
    return ".temporal" in name


def is_image_vae(file_name: str, prefix: str) -> bool:
    """Whether a name in a file belongs to the image autoencoder there, known to us or not (`quant_conv` is one)."""
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    return file_name.startswith(prefix) and file_name.removeprefix(prefix).startswith(parts)


DIFFUSERS_RULES = (
    (r"\.spatial\b", ""),
    (r"encoder\.levels\.(\d+)\.blocks\.(\d+)", r"encoder.down_blocks.\1.resnets.\2"),
    (r"decoder\.levels\.(\d+)\.blocks\.(\d+)", r"decoder.up_blocks.\1.resnets.\2"),
    (r"encoder\.levels\.(\d+)\.resample", r"encoder.down_blocks.\1.downsamplers.0.conv"),
    (r"decoder\.levels\.(\d+)\.resample", r"decoder.up_blocks.\1.upsamplers.0.conv"),
    (r"\.shortcut\b", ".conv_shortcut"),
    (r"middle\.block_1", "mid_block.resnets.0"),
    (r"middle\.block_2", "mid_block.resnets.1"),
    (r"middle\.attention\.norm", "mid_block.attentions.0.group_norm"),
    (r"middle\.attention\.(query|key|value)", lambda found: f"mid_block.attentions.0.to_{found[1][0]}"),
    (r"middle\.attention\.output", "mid_block.attentions.0.to_out.0"),
    (r"\.norm_out\b", ".conv_norm_out"),
)

ORIGINAL_RULES = (
    (r"\.spatial\b", ""),
    (r"levels\.(\d+)\.blocks\.(\d+)", r"levels.\1.block.\2"),
    (r"encoder\.levels\.(\d+)\.resample", r"encoder.levels.\1.downsample.conv"),
    (r"decoder\.levels\.(\d+)\.resample", r"decoder.levels.\1.upsample.conv"),
    (r"encoder\.levels", "encoder.down"),
    (r"\.shortcut\b", ".nin_shortcut"),
    (r"middle\.block_", "mid.block_"),
    (r"middle\.attention\.norm", "mid.attn_1.norm"),
    (r"middle\.attention\.(query|key|value)", lambda found: f"mid.attn_1.{found[1][0]}"),
    (r"middle\.attention\.output", "mid.attn_1.proj_out"),
)


def diffusers_name(name: str) -> str:
    """The name in diffusers' AutoencoderKL of a spatial parameter of ours."""
    return apply_rules(name, DIFFUSERS_RULES)


def original_name(name: str, levels: int) -> str:
    """The same in the original layout, which counts the decoder's levels from its output."""
    name = apply_rules(name, ORIGINAL_RULES)
    return re.sub(r"decoder\.levels\.(\d+)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", name)


def apply_rules(name: str, rules: Iterable[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def match_names(names: list[str], stored: list[str], path: Path) -> tuple[dict[str, str], str]:
    """Map our spatial names to names in the file; also give the prefix that they have there."""
    anchor = "encoder.conv_in.weight"
    prefix = next((name.removesuffix(anchor) for name in stored if name.endswith(anchor)), None)
    if prefix is None:
        raise UserError(
            f"{path} holds no image autoencoder: no {anchor} among its {len(stored)} names "
            f"({', '.join(stored[:SHOWN_DIFFERENCES])}, ...). {WAYS_TO_GIVE_WEIGHTS}"
        )
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.levels.")})
    is_diffusers = any(name.startswith(f"{prefix}encoder.down_blocks.") for name in stored)
    translate = diffusers_name if is_diffusers else lambda name: original_name(name, levels)
    return {name: prefix + translate(name) for name in names}, prefix


def check_fit(path: Path, wanted: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> None:
    """Refuse a file that differs from the model in any name or shape, and show where it begins to."""

    def same(model_shape: tuple[int, ...], file_shape: tuple[int, ...]) -> bool:
        # The original layout stores the attention's matrices as 1x1 convolutions.
        return file_shape in (model_shape, (*model_shape, 1, 1))

    differences = [
        f"{name}: {f'file {stored[name]}, model {shape}' if name in stored else f'not in the file, model {shape}'}"
        for name, shape in wanted.items()
        if name not in stored or not same(shape, stored[name])
    ]
    differences += [f"{name}: file {shape}, not in the model" for name, shape in stored.items() if name not in wanted]
    if differences:
        raise UserError(
            f"{path} is an image autoencoder of another architecture than the model: "
            f"{differing_parameters(differences)}"
            "Choose the model that it belongs to (model=sd35 for Stable Diffusion 3 and 3.5), or other weights."
        )


def find_weights(path_or_repo_id: str | Path) -> Path:
    """The local .safetensors file that a path or a hub repository id stands for, downloaded if need be."""
    found = find_local(path_or_repo_id)
    return (
        download(str(path_or_repo_id), PLACES, WAYS_TO_GIVE_WEIGHTS, WEIGHTS_WITHOUT_NETWORK)
        if found is None
        else found
    )


def check_source(path_or_repo_id: str | Path) -> None:
    """Refuse what `inflate` could not find, without a download.

    Raises:
        UserError: no such file, or a repository that is neither in the cache nor within reach.
    """
    if find_local(path_or_repo_id) is None:
        check_reachable(str(path_or_repo_id), PLACES, WAYS_TO_GIVE_WEIGHTS, WEIGHTS_WITHOUT_NETWORK)


def find_local(path_or_repo_id: str | Path) -> Path | None:
    """The .safetensors file that a path stands for; None for a repository of the hub."""
    path = to_path(path_or_repo_id)
    if path.is_dir():
        candidates = [folder / name for folder in (path / "vae", path) for name in WEIGHT_FILES]
        found = next((candidate for candidate in candidates if candidate.is_file()), None)
        if found is None:
            raise UserError(
                f"The folder {path} holds no {WEIGHT_FILES[0]}, nor does {path / 'vae'}. {WAYS_TO_GIVE_WEIGHTS}"
            )
        return found
    if path.is_file():
        if path.suffix != ".safetensors":
            raise UserError(
                f"{path} is not a .safetensors file; other formats can run code when read. {WAYS_TO_GIVE_WEIGHTS}"
            )
        return path
    if not may_be_repository(str(path_or_repo_id)):
        raise UserError(f"image_vae={path_or_repo_id}: no such file or folder. {WAYS_TO_GIVE_WEIGHTS}")
    return None

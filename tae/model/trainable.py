"""What of the model is trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn

from tae.model.autoencoder import TemporalAutoencoder
from tae.model.inflate import is_temporal
from tae.model.interface import VideoAutoencoder
from tae.runtime.errors import UserError

Trainable = Literal["all", "decoder", "temporal"]


def freeze(model: VideoAutoencoder, trainable: Trainable) -> None:
    """Freeze all that is not to be trained; an encoder that is frozen as a whole goes into evaluation mode.

    A frozen parameter gets no gradient, so no optimizer state; a frozen encoder keeps no activations either, since no
    gradient is asked for in it. "temporal" keeps the activations: gradients pass through frozen layers.

    Args:
        trainable: "all"; "decoder", whose encoder and hence latents stay as they are; "temporal", what inflation added to an
            image autoencoder, whose inherited weights stay.

    Raises:
        UserError: `trainable` is none of these, or there are no inherited weights.
    """
    if trainable not in get_args(Trainable):
        raise UserError(f"trainable={trainable} is unknown. Choose one of: {', '.join(get_args(Trainable))}.")
    if trainable == "decoder":
        model.encoding_modules.requires_grad_(False).eval()
    elif trainable == "temporal":
        if not isinstance(model, TemporalAutoencoder):
            raise UserError(
                f"trainable=temporal trains what was added to an image autoencoder, and {model.name} was not made from one: "
                "name parts of it in model.parts."
            )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_temporal(name))


def freeze_all_but(network: nn.Module, parts: Sequence[str]) -> None:
    """Train named parts alone.

    Args:
        parts: names of submodules or parameters, in which `*` stands for anything: "decoder.up_blocks",
            "decoder.*.conv_shortcut".

    Raises:
        UserError: one of them names nothing, or there are none.
    """
    if not parts:
        raise UserError("parts=[] trains nothing: name parts, or null for all.")
    names = [name for name, _ in network.named_parameters()]
    for part in parts:
        if not any(is_part(name, part) for name in names):
            known = dict.fromkeys(".".join(name.split(".")[:-1][:2]) or name for name in names)
            raise UserError(f"parts: {part} names nothing. There are {', '.join(known)}, and what is below them.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(is_part(name, part) for part in parts))


def is_part(name: str, part: str) -> bool:
    """Whether a parameter is a part, or in it."""
    return fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())

"""What of the model is trained."""

from typing import Literal, get_args

from torch import nn

from tae.model.autoencoder import TemporalAutoencoder
from tae.model.inflate import is_temporal
from tae.runtime.errors import UserError

Trainable = Literal["all", "decoder", "temporal"]


def freeze(model: TemporalAutoencoder, trainable: Trainable) -> None:
    """Freeze all that is not to be trained; an encoder that is frozen as a whole goes into evaluation mode.

    A frozen parameter gets no gradient, so no optimizer state; a frozen encoder keeps no activations either, since no
    gradient is asked for in it. "temporal" keeps the activations: gradients pass through frozen layers.

    Args:
        trainable: "all"; "decoder", whose encoder and hence latents stay as they are; "temporal", what inflation added to an
            image autoencoder, whose inherited weights stay.

    Raises:
        UserError: `trainable` is none of these.
    """
    if trainable not in get_args(Trainable):
        raise UserError(f"trainable={trainable} is unknown. Choose one of: {', '.join(get_args(Trainable))}.")
    if trainable == "decoder":
        model.encoder.requires_grad_(False).eval()
    elif trainable == "temporal":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_temporal(name))


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of a module is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())

"""Building the model to train."""

from typing import Any

from tae.model.autoencoder import TemporalAutoencoder
from tae.model.pretrained import load_model, load_weights
from tae.runtime.console import say


def build_autoencoder(
    image_vae: str | None,
    init_from: str | None,
    gradient_checkpointing: bool,
    compile_blocks: bool,
    **architecture: Any,
) -> TemporalAutoencoder:
    """Build the model to train.

    Args:
        image_vae: where the spatial weights come from (`TemporalAutoencoder.from_image_vae`); None starts at random.
        init_from: a checkpoint or folder whose weights replace all of them, for fine-tuning.
        gradient_checkpointing: keep only the inputs of the residual blocks of the two largest resolutions for the backward
            pass, which computes these blocks again; what is smaller is kept.
        compile_blocks: compile the residual blocks, which takes minutes at the start.
        **architecture: arguments of `TemporalAutoencoder`.

    Raises:
        UserError: the given weights cannot be read, or do not fit this architecture; or the architecture itself is refused.
    """
    if init_from is not None:
        model = TemporalAutoencoder(**architecture)
        loaded = load_model(init_from)
        load_weights(model, loaded.model.state_dict(), init_from)
        model.starting_weights = {"init_from": loaded.source, "sha256": loaded.sha256}
        unused = "" if image_vae is None else f"; image_vae={image_vae} is not used, unless with init_from=null"
        say(f"init_from: all weights from {init_from}{unused}")
    elif image_vae is not None:
        model = TemporalAutoencoder.from_image_vae(image_vae, **architecture)
        say(f"image_vae: {model.inflation}")
    else:
        model = TemporalAutoencoder(**architecture)
    model.gradient_checkpointing = gradient_checkpointing
    if compile_blocks:
        model.compile_blocks()
    return model

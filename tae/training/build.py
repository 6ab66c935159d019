"""Building the model to train."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Annotated, Any

import torch

from tae.model.autoencoder import TemporalAutoencoder
from tae.model.corruption import make_corruption
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.diffusers.loading import load_weights_and_config, read_config
from tae.model.distillation import Distillation
from tae.model.interface import VideoAutoencoder
from tae.model.pretrained import WAYS_TO_GIVE_A_MODEL, LoadedModel, load_autoencoder, load_model, load_weights
from tae.model.pretrained_decoder import load_decoder
from tae.model.tiny_decoder import TinyDecoder
from tae.model.trainable import Trainable, freeze, freeze_all_but
from tae.runtime.annotations import ArgumentsOf, AtLeastOne, ShareBelowOne, Weight
from tae.runtime.console import say
from tae.runtime.errors import UserError

OF_GROUP_NORM = ("norm_groups", "group_norm")
SHAPELESS = (
    *OF_GROUP_NORM,
    "frontend",
    "temporal_padding",
)  # of the architecture: they change what is computed, and no parameter's shape


def build_autoencoder(
    image_vae: str | None,
    init_from: str | None,
    gradient_checkpointing: bool,
    compile_blocks: bool,
    trainable: Trainable = "all",
    latent_noise: Weight = 0.0,
    latent_mask: ShareBelowOne = 0.0,
    channel_dropout: Sequence[int] | None = None,
    **architecture: Annotated[Any, ArgumentsOf(TemporalAutoencoder)],
) -> TemporalAutoencoder:
    """Build the model to train.

    Args:
        image_vae: where the spatial weights come from (`TemporalAutoencoder.from_image_vae`); None starts at random.
        init_from: a checkpoint or folder whose weights replace all of them, for fine-tuning.
        gradient_checkpointing: keep only the inputs of the residual blocks of the two largest resolutions for the backward
            pass, which computes these blocks again; what is smaller is kept.
        compile_blocks: compile the residual blocks, which takes minutes at the start.
        trainable: "all", "decoder" or "temporal"; see `tae.model.trainable.freeze`.
        latent_noise, latent_mask, channel_dropout: what latents go through in training before they are decoded, the noise,
            mask and prefixes of `tae.model.corruption.LatentCorruption`.
        **architecture: arguments of `TemporalAutoencoder`.

    Raises:
        UserError: the given weights cannot be read, or do not fit this architecture; or the architecture itself is refused.
    """
    if init_from is not None:
        model = TemporalAutoencoder(**architecture)
        loaded = load_model(init_from)
        check_same_function(loaded.model.architecture, model.architecture, init_from)
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
    freeze(model, trainable)
    # After it: the token of masked positions is trained whatever else is.
    model.corruption = make_corruption(model.latent_channels, latent_noise, latent_mask, channel_dropout)
    if compile_blocks:
        model.compile_blocks()
    return model


def build_diffusers(
    class_name: str,
    source: str | None = None,
    config: Mapping[str, Any] | str | None = None,
    init_from: str | None = None,
    trainable: Trainable = "all",
    parts: Sequence[str] | None = None,
    gradient_checkpointing: bool = False,
    latent_noise: Weight = 0.0,
    latent_mask: ShareBelowOne = 0.0,
    channel_dropout: Sequence[int] | None = None,
) -> DiffusersAutoencoder:
    """Build an autoencoder of diffusers to train.

    Args:
        class_name: one of `tae.model.diffusers.families.FAMILIES`.
        source: a folder, or OWNER/NAME[/SUBFOLDER] on the hub, with weights and config; None starts at random.
        config: without a source, arguments of the class, or a file or place that has a config.json; None: its defaults.
        init_from: a checkpoint of such a training, whose weights replace all others.
        trainable: "all" or "decoder"; see `tae.model.trainable.freeze`.
        parts: names of what alone is trained; see `tae.model.trainable.freeze_all_but`.
        gradient_checkpointing: as the class itself does it.
        latent_noise, latent_mask, channel_dropout: as in `build_autoencoder`.

    Raises:
        UserError: there is no such class or source, settings exclude each other, or weights do not fit.
    """
    if source is not None and config is not None:
        raise UserError(f"source={source} has a config of its own: give it or config, not both.")
    if parts is not None and trainable != "all":
        raise UserError(f"parts={list(parts)} and trainable={trainable} both say what is trained: give one of them.")
    if source is not None and init_from is None:
        model, digest = load_weights_and_config(class_name, source)
        model.starting_weights = {"source": source, "sha256": digest}
        say(f"source: all weights from {source}")
    else:
        given = config if source is None else source
        arguments = read_config(class_name, given) if isinstance(given, str) else given or {}
        model = DiffusersAutoencoder.from_config(class_name, arguments)
    if init_from is not None:
        take_weights(model, init_from)
    model.gradient_checkpointing = gradient_checkpointing
    freeze(model, trainable)
    if parts is not None:
        freeze_all_but(model.vae, parts)
    model.corruption = make_corruption(model.latent_channels, latent_noise, latent_mask, channel_dropout)
    return model


def take_weights(model: VideoAutoencoder, init_from: str) -> None:
    """Replace all weights by those of another model with the same architecture.

    Raises:
        UserError: it is another one, or cannot be loaded.
    """
    loaded = load_autoencoder(init_from)
    theirs, ours = (network.architecture for network in (loaded.model, model))
    if theirs != ours:
        names = [name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)]
        raise UserError(f"init_from={init_from} holds another network: {', '.join(sorted(names))} differ.")
    load_weights(model, loaded.model.state_dict(), init_from)
    model.starting_weights = {"init_from": loaded.source, "sha256": loaded.sha256}
    say(f"init_from: all weights from {init_from}")


def check_same_function(theirs: Mapping[str, Any], ours: Mapping[str, Any], source: str) -> None:
    """Refuse weights that fit in shape and were trained for another function of them.

    Raises:
        UserError: a setting that no parameter's shape shows differs.
    """
    defaults = signature(TemporalAutoencoder).parameters  # of what an architecture does not name
    was_set, is_set = ({n: of.get(n, defaults[n].default) for n in SHAPELESS} for of in (theirs, ours))
    unused = OF_GROUP_NORM if theirs.get("norm") == ours.get("norm") == "rms" else ()
    different = [name for name in SHAPELESS if was_set[name] != is_set[name] and name not in unused]
    if different:
        was = ", ".join(f"{name}={was_set[name]}" for name in different)
        now = ", ".join(f"{name}={is_set[name]}" for name in different)
        raise UserError(
            f"init_from={source} was trained with {was}, and this model has {now}: the same weights compute something else "
            f"there. Give {' '.join(f'model.{name}={was_set[name]}' for name in different)}."
        )


def build_distillation(
    teacher: str | None,
    init_from: str | None,
    features_weight: Weight,
    width: AtLeastOne,
    blocks: AtLeastOne,
) -> Distillation:
    """Build a tiny decoder to train beside its frozen teacher, which says what latents there are.

    Args:
        teacher: whatever `load_autoencoder` takes.
        init_from: a tiny decoder of the same sizes whose weights it starts with, also one of another teacher.
        features_weight: weight of `loss.features`; at 0 there are no projections.
        width, blocks: of `TinyDecoder`.

    Raises:
        UserError: the teacher or the weights cannot be read, or do not fit.
    """
    loaded = load_teacher(teacher)
    model = loaded.model
    decoder = TinyDecoder(
        encoder=loaded.encoder,
        latent_channels=model.latent_channels,
        width=width,
        blocks=blocks,
        time_factor=model.time_factor,
        space_factor=model.space_factor,
        lone_first_frame=has_lone_first_frame(model),
    )
    distillation = Distillation(model, decoder, matches_features=features_weight > 0)
    distillation.starting_weights = {"teacher": loaded.source, "sha256": loaded.sha256}
    if init_from is not None:
        begun = load_decoder(init_from)
        if not isinstance(begun.decoder, TinyDecoder):
            raise UserError(
                f"init_from={init_from} is no tiny decoder: give one that experiment=distill trained, or null."
            )
        load_weights(decoder, begun.decoder.state_dict(), init_from)
        say(f"init_from: the decoder's weights from {init_from}")
    return distillation


def load_teacher(teacher: str | None) -> LoadedModel:
    """The autoencoder to distil.

    Raises:
        UserError: none was given, or it cannot be loaded.
    """
    if teacher is None:
        raise UserError(f"teacher=null: there is nothing to distil. {WAYS_TO_GIVE_A_MODEL}")
    with torch.device("cpu"):  # also where a plan makes models without weights: its identity needs them
        return load_autoencoder(teacher)


def has_lone_first_frame(model: VideoAutoencoder) -> bool:
    """Whether the first latent frame is of one frame alone, and each other one of `time_factor` frames.

    Raises:
        UserError: neither it nor `time_factor` frames for each of the latent.
    """
    factor, counts = model.time_factor, range(1, 4)

    def latent_frames(frames: int) -> int:
        return model.latent_shape(frames, model.space_factor, model.space_factor)[1]

    if factor == 1 or all(latent_frames(factor * count) == count for count in counts):
        return False
    if all(latent_frames(factor * count + 1) == count + 1 for count in counts):
        return True
    raise UserError(
        f"teacher: {model.name} maps frames to latents in a way that a tiny decoder does not know. It knows t' latents of "
        f"{factor} t' frames, and of {factor} (t' - 1) + 1."
    )

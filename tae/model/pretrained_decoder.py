"""Loading a decoder alone, and pairing it with the encoder that it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError

from tae.model.bundled import BUNDLED
from tae.model.checkpoint_file import kind_of_weights, model_weights, read_checkpoint
from tae.model.codec import LatentDecoder
from tae.model.distillation import DECODER_PREFIX
from tae.model.pairing import PairedAutoencoder
from tae.model.pretrained import (
    WEIGHTS_FILE,
    LoadedModel,
    download_pretrained,
    load_autoencoder,
    load_weights,
    read_config,
)
from tae.model.tiny_decoder import TinyDecoder, describes_decoder
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256
from tae.runtime.hub import may_be_repository
from tae.runtime.paths import to_path

Decoder = TypeVar("Decoder", bound=LatentDecoder, covariant=True)


@dataclass(frozen=True)
class LoadedDecoder(Generic[Decoder]):
    """A decoder and where it came from.

    Args:
        decoder: a tiny decoder, or an autoencoder of which only the decoder is used; in evaluation mode.
        encoder: SHA-256 of the encoder whose latents it decodes.
        config, weights: as in `LoadedModel`.
    """

    decoder: Decoder
    encoder: str | None
    source: str
    sha256: str | None
    config: Mapping[str, Any] | None
    weights: str | None = None


def load_decoder(source: str | Path, weights: str | None = None) -> LoadedDecoder[LatentDecoder]:
    """Load a decoder for use, in evaluation mode.

    Args:
        source: what a distillation or a training of ours wrote: a checkpoint (`.ckpt`), a folder that `save_pretrained` or
            `tae.export` wrote, or a hub repository id.
        weights: of a checkpoint: "ema" or "raw"; None: the average where there is one.

    Raises:
        UserError: there is no such thing, or it is damaged or something else.
    """
    tiny = read_tiny_decoder(source, weights)
    if tiny is not None:
        return tiny
    loaded = load_autoencoder(source, weights)
    return LoadedDecoder(loaded.model, loaded.encoder, str(source), loaded.sha256, loaded.config, loaded.weights)


def read_tiny_decoder(source: str | Path, weights: str | None = None) -> LoadedDecoder[TinyDecoder] | None:
    """A tiny decoder; None where the source is something else, or nothing.

    Raises:
        UserError: it is one, and is damaged or does not have such weights.
    """
    path = BUNDLED.get(str(source), to_path(source))
    if path.is_file():
        checkpoint = read_checkpoint(path)
        if not describes_decoder(checkpoint["architecture"]):
            return None
        decoder = build_tiny_decoder(checkpoint["architecture"], path)
        kind = kind_of_weights(checkpoint, weights, path)
        state = model_weights(checkpoint, kind)
        own = {k.removeprefix(DECODER_PREFIX): v for k, v in state.items() if k.startswith(DECODER_PREFIX)}
        load_weights(decoder, own, path)
        decoder.starting_weights = checkpoint.get("starting_weights")
        digest, config = file_sha256(path), checkpoint["config"]
        return LoadedDecoder(decoder.eval(), decoder.of_encoder, str(source), digest, config, kind)
    folder = path if path.is_dir() or not may_be_repository(str(source)) else download_pretrained(str(source))
    if not describes_decoder(read_config(folder)):
        return None
    try:
        decoder = TinyDecoder.from_pretrained(folder)
    except (OSError, SafetensorError, RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} holds no tiny decoder, or it is damaged: {error}") from error
    return LoadedDecoder(decoder.eval(), decoder.of_encoder, str(source), file_sha256(folder / WEIGHTS_FILE), None)


def build_tiny_decoder(architecture: Mapping[str, Any], source: str | Path) -> TinyDecoder:
    """The tiny decoder that a file describes.

    Raises:
        UserError: these are not the arguments of one, or it would be beyond all bounds.
    """
    try:
        return TinyDecoder(**architecture)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} describes no decoder that can be built: {error}") from error


def pair(loaded: LoadedModel, decoder: LoadedDecoder, name: str = "ckpt") -> LoadedModel:
    """The encoder of one model with the decoder of another: a model with the decoder's file, and the encoder's config.

    Args:
        name: of the setting that gave the encoder.

    Raises:
        UserError: the decoder is for the latents of another encoder.
    """
    if decoder.encoder != loaded.encoder:
        raise UserError(
            f"decoder={decoder.source} decodes the latents of another encoder ({str(decoder.encoder)[:12]}...) than that of "
            f"{name}={loaded.source} ({loaded.encoder[:12]}...). Give one that was trained from it with trainable=decoder "
            "or distilled from it with experiment=distill."
        )
    paired = PairedAutoencoder(loaded.model, decoder.decoder).eval()
    paired.starting_weights = getattr(decoder.decoder, "starting_weights", None)
    return LoadedModel(paired, decoder.source, decoder.sha256, loaded.config, decoder.weights)

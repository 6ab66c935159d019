"""A tiny decoder to share: its weights, config and a card. The projections that it was trained with are not in it."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from omegaconf import DictConfig

from tae.interop.model_card import CARD, find_metrics, origin, quality
from tae.interop.repository import prepare_repository, upload
from tae.latents.file import DTYPES
from tae.model.pretrained_decoder import LoadedDecoder
from tae.model.tiny_decoder import TinyDecoder
from tae.runtime.errors import UserError
from tae.runtime.files import apply_umask, write_text
from tae.runtime.paths import to_path
from tae.runtime.progress import stage

USE = """```python
from tae import TinyDecoder, clip_to_frames

decoder = TinyDecoder.from_pretrained("{name}")
frames = clip_to_frames(decoder.decode(latents))  # (b, {channels}, t', h', w') -> uint8 (b, t, h, w, 3)
```

Videos through the encoder and this decoder: `python -m tae.reconstruct ckpt=TEACHER decoder={name} source=VIDEO`."""


def export_decoder(loaded: LoadedDecoder[TinyDecoder], cfg: DictConfig) -> Path:
    """Write the folder `cfg.output`, which is empty or new, and, where asked, upload it.

    Raises:
        UserError: a setting is of autoencoders alone, the metrics are another checkpoint's, or the hub refuses.
    """
    if cfg.format != "safetensors" or cfg.latents is not None:
        given = f"latents={cfg.latents}" if cfg.latents is not None else f"format={cfg.format}"
        raise UserError(f"{given} is of a whole autoencoder, and ckpt={cfg.ckpt} is a tiny decoder: leave it out.")
    output, metrics = to_path(cfg.output), find_metrics(loaded, cfg.metrics_json)
    if cfg.push:
        prepare_repository(cfg.repo, cfg.private)  # a refusal should come before the work
    output.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(loaded.decoder).to(DTYPES[cfg.dtype]).save_pretrained(output)
    apply_umask(output / "model.safetensors")
    write_text(output / CARD, decoder_card(loaded, metrics, cfg))
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if cfg.push:
        with stage(f"uploading to {cfg.repo}"):
            upload(output, cfg.repo)
    return output


def decoder_card(loaded: LoadedDecoder[TinyDecoder], metrics: Mapping[str, Any] | None, cfg: DictConfig) -> str:
    """The README of the folder."""
    decoder, name = loaded.decoder, cfg.repo or Path(cfg.output).name
    header = ModelCardData(license=cfg.license, library_name="temporal-autoencoder", tags=["video", "vae"])
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    sections = [
        f"---\n{header.to_yaml()}\n---\n\n# {name}",
        f"A tiny decoder of video latents, by 2D convolutions on single frames: {decoder.latent_channels} channels to "
        f"{decoder.time_factor}x the frames, {decoder.space_factor}x height and width. {parameters / 1e6:.2f} M parameters. "
        f"It decodes the latents of one encoder alone, whose SHA-256 is `{decoder.of_encoder}` (`encoder` in config.json).",
        USE.format(name=name, channels=decoder.latent_channels),
        "## Quality\n\n" + ("Not measured." if metrics is None else quality(metrics)),
        "## Origin\n\n" + origin(loaded.sha256, loaded.weights, decoder.starting_weights, cfg.dtype),
    ]
    return "\n\n".join(sections) + "\n"

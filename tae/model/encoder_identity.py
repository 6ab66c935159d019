"""The identity of an encoder: models with the same one give the same latents, and decode each other's."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Of the architecture: what decides how the encoder's weights are used.
DECISIVE = (
    "base_channels", "channel_multipliers", "latent_channels", "encoder_blocks", "norm_groups", "group_norm", "norm",
    "frontend", "folds", "temporal_padding", "class_name", "config",
)  # fmt: skip
ENCODER_PREFIXES = ("encoder.", "vae.encoder.", "vae.quant_conv.")  # ours, and diffusers'


def encoder_sha256(architecture: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the encoder's architecture and weights; of their values, not of how they are stored.

    Args:
        architecture: of the autoencoder.
        weights: its state dict.
    """
    settings = {name: architecture[name] for name in DECISIVE if name in architecture}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(name for name in weights if name.startswith(ENCODER_PREFIXES)):
        values = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()

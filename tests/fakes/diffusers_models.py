"""Autoencoders of diffusers as small as they can be, with random weights."""

from pathlib import Path
from typing import Any

import torch

from tae.model.interface import VideoAutoencoder

GROUPS = {"norm_num_groups": 4}
FOUR = (8, 8, 8, 8)
WAN = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1}
LTX = {"block_out_channels": FOUR, "layers_per_block": (1,) * 5, "latent_channels": 4}
KL = {"block_out_channels": FOUR, "layers_per_block": 1, "latent_channels": 4, **GROUPS}
DC: dict[str, Any] = {"latent_channels": 4} | {
    f"{half}_{name}": value
    for half in ("encoder", "decoder")
    for name, value in {
        "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "block_out_channels": (8, 8, 8),
        "layers_per_block": (1, 1, 1),
        "qkv_multiscales": ((), (), (5,)),
    }.items()
}

# For each class: constructor arguments of a small model; a clip that it takes; the latents of that clip.
SMALL: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, int, int, int]]] = {
    "AutoencoderDC": (DC | {"attention_head_dim": 4}, (3, 32, 32), (4, 3, 8, 8)),
    "AutoencoderKL": (
        {
            "block_out_channels": (8, 8, 8),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            **GROUPS,
        },
        (3, 32, 32),
        (4, 3, 8, 8),
    ),
    "AutoencoderKLAllegro": (KL | {"sample_size": 128}, (24, 128, 128), (4, 6, 16, 16)),
    "AutoencoderKLCogVideoX": (KL, (9, 32, 32), (4, 3, 4, 4)),
    "AutoencoderKLCosmos": (
        {
            "encoder_block_out_channels": FOUR,
            "decode_block_out_channels": FOUR,
            "num_layers": 1,
            "latent_channels": 4,
            "attention_resolutions": (8,),
            "resolution": 32,
        },
        (9, 32, 32),
        (4, 2, 4, 4),
    ),
    "AutoencoderKLHunyuanVideo": (KL, (9, 32, 32), (4, 3, 4, 4)),
    "AutoencoderKLHunyuanVideo15": (
        {"latent_channels": 4, "block_out_channels": (8,) * 5, "layers_per_block": 1},
        (9, 32, 32),
        (4, 3, 2, 2),
    ),
    "AutoencoderKLKVAEVideo": (
        {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 4},
        (5, 16, 16),
        (4, 2, 2, 2),
    ),
    "AutoencoderKLLTX2Video": (
        LTX | {"decoder_block_out_channels": (8, 16, 32), "decoder_layers_per_block": (1,) * 4},
        (9, 64, 64),
        (4, 2, 2, 2),
    ),
    "AutoencoderKLLTXVideo": (
        LTX | {"decoder_block_out_channels": FOUR, "decoder_layers_per_block": (1,) * 5},
        (9, 32, 32),
        (4, 2, 1, 1),
    ),
    "AutoencoderKLMagvit": (KL, (9, 32, 32), (4, 3, 4, 4)),
    "AutoencoderKLMiniMaxH3": (
        {
            "latent_channels": 4,
            "block_out_channels": (8,) * 6,
            "layers_per_block": 1,
            "decoder_num_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_attention_head_dim": 16,
            "latents_mean": (0.0,) * 4,
            "latents_std": (1.0,) * 4,
            **GROUPS,
        },
        (22, 32, 32),
        (4, 7, 2, 2),
    ),
    "AutoencoderKLMochi": (
        {
            "encoder_block_out_channels": (32,) * 4,
            "decoder_block_out_channels": (32,) * 4,
            "latent_channels": 4,
            "layers_per_block": (1,) * 5,
        },
        (7, 16, 16),
        (4, 2, 2, 2),
    ),
    "AutoencoderKLQwenImage": (WAN, (9, 32, 32), (4, 3, 4, 4)),
    "AutoencoderKLWan": (WAN, (9, 32, 32), (4, 3, 4, 4)),
    "AutoencoderVidTok": ({"ch": 8, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}, (9, 32, 32), (4, 3, 4, 4)),
}


def make(name: str, **arguments: Any) -> Any:
    """One of diffusers' own instances, in evaluation mode."""
    import diffusers

    return getattr(diffusers, name)(**(SMALL[name][0] | arguments)).eval()


def save_checkpoint(model: VideoAutoencoder, path: Path) -> Path:
    """What of a training's checkpoint loading reads."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, "architecture": model.architecture, "config": {}}, path)
    return path

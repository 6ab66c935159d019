"""The floor of the rate-distortion plot: what principal components of blocks reach on the evaluated clips."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from tae.evaluation.results import gather
from tae.metrics.frame import psnr
from tae.metrics.linear_codec import BLOCK, BLOCK_VALUES, BlockSums, LinearCodec
from tae.model.frame_conversion import clip_to_frames, frames_to_clip

FITTED_CLIPS = 16  # they are held in memory
COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of each block's 1536 values


def evenly_spaced(keys: Sequence[str]) -> list[str]:
    """At most `FITTED_CLIPS` of the keys, the same whatever the number of processes."""
    return list(keys[:: -(-len(keys) // FITTED_CLIPS)])


@torch.no_grad()
def linear_codec_curve(clips: Iterable[Batch], keys: Sequence[str], device: torch.device) -> dict[str, Any] | None:
    """PSNR in dB of 1 to 256 principal components for each 8x8x8 block; None for a single clip.

    The clips are halved; each half is coded by the components of the other one, so that none has seen what it codes.

    Args:
        clips: this process's share of the clips with these keys.
        keys: of all of them; the first, third, ... are one half.
        device: to compute on.
    """
    if len(keys) < 2:
        return None
    half = {key: place % 2 for place, key in enumerate(sorted(keys))}
    held = [
        (key, frames.clone()) for batch in clips for key, frames in zip(batch["keys"], batch["frames"], strict=True)
    ]
    shares = [BlockSums(), BlockSums()]
    for key, frames in held:
        shares[half[key]].add(frames_as_clip(frames, device))
    sums = [BlockSums(), BlockSums()]
    for share in gather([shares]):
        for whole, part in zip(sums, share, strict=True):
            whole += part
    codecs = [LinearCodec(whole, max(COMPONENTS)) if whole.count else None for whole in sums]
    found = []
    for key, frames in held:
        codec, clip = codecs[1 - half[key]], frames_as_clip(frames, device)
        if codec is not None:  # a half none of whose clips could be decoded
            coded = (clip_to_frames(codec(clip, numbers))[0].cpu() for numbers in COMPONENTS)
            found.append((key, [psnr(frames, one).mean().item() for one in coded]))
    found = sorted(gather(found))
    return {
        "block": [BLOCK] * 3,
        "clips": len(found),
        "numbers": list(COMPONENTS),
        "rate": [numbers / BLOCK_VALUES for numbers in COMPONENTS],
        "psnr": np.mean([values for _, values in found], axis=0).tolist() if found else None,
    }


def frames_as_clip(frames: Tensor, device: torch.device) -> Tensor:
    """(t, h, w, 3) uint8 to (1, 3, t, h, w) in [-1, 1]."""
    return frames_to_clip(frames[None].to(device))

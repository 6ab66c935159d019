"""The contract between a loader and whatever trains or measures."""

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict):
    """Clips of one length and size.

    frames: (b, t, h, w, 3) uint8 RGB
    keys:   of the b clips, each the name of its sample in the shards
    fps:    frames a second of each
    """

    frames: Tensor
    keys: list[str]
    fps: list[float]

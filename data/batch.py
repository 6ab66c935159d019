"""The contract between a loader and whatever trains or measures."""

from typing import Any, NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """Clips of one length and size.

    frames: (b, t, h, w, 3) uint8 RGB
    keys:   of the b clips, each the name of its sample in the shards
    fps:    frames a second of each
    labels: of each, "" where it has none
    source: the name of the stream that all of them are of (`data.loading.mixture`), where there are several
    metadata: what `data.metadata` names, of each clip; None where it does not say. Left out where nothing is named
    """

    frames: Tensor
    keys: list[str]
    fps: list[float]
    labels: NotRequired[list[str]]
    source: NotRequired[str]
    metadata: NotRequired[dict[str, list[Any]]]

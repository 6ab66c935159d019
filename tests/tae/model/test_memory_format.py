"""No activation changes its order in memory, forward or backward, and cuDNN can tell."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tae.model.layers import Conv2_5d, Downsample, ResidualBlock, Upsample

FRAMES, SIZE, CHANNELS = 8, 8, 16
COPIES = ("aten.clone.default", "aten.copy_.default", "aten._to_copy.default")


class Watch(TorchDispatchMode):
    """Keeps every copy of an activation's size, and the strides of what convolutions are given."""

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        self.copies: list[str] = []
        self.convolved: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func) in COPIES and out.numel() >= self.num_values:
            self.copies.append(f"{func} {tuple(out.shape)}")
        if str(func) in ("aten.convolution.default", "aten.convolution_backward.default"):
            activations = args[:1] if "backward" not in str(func) else args[:2]
            self.convolved.extend(x for x in activations if x.numel() >= self.num_values)
        return out


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("layer", "copies"),
    [
        (Conv2_5d(CHANNELS, CHANNELS), 0),
        (ResidualBlock(CHANNELS, CHANNELS, groups=4, group_norm="frame"), 0),
        (ResidualBlock(CHANNELS, 2 * CHANNELS, groups=4, group_norm="clip"), 0),
        (Upsample(CHANNELS), 0),
        (Downsample(CHANNELS), 1),  # the padding right and below, forward
    ],
    ids=["conv", "block", "widening", "upsample", "downsample"],
)
def test_nothing_is_copied(layer: nn.Module, copies: int, batch: int) -> None:
    """A batch of one once had a stride by which cuDNN took it for channels-first: half of a step went into copies."""
    layer.to(memory_format=torch.channels_last)
    x = torch.randn(batch, FRAMES, SIZE, SIZE, CHANNELS).movedim(-1, 1).requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(layer(x))
    # Smaller than any activation, larger than any weight's copy or single frame.
    with Watch(num_values=min(x.numel(), grad.numel()) * 3 // 4) as watch:
        layer(x).backward(grad)
    assert len(watch.copies) <= copies, watch.copies
    assert watch.convolved
    for tensor in watch.convolved:
        assert tensor.stride(1) == 1, (tensor.shape, tensor.stride())
        assert tensor.stride(0) == tensor[0].numel(), (tensor.shape, tensor.stride())

"""Every layer that is ours against its definition, and the memory layout that makes it fast."""

import pytest
import torch
from torch import nn

from tae.model.layers import Attention, Conv2_5d, Downsample, GroupNorm, ResidualBlock, Upsample, attend_with_scores
from tae.model.temporal_conv import TemporalConv
from tests.references.layers import attention_by_loops, group_norm_by_loops, temporal_conv_by_loops

CHANNELS_LAST = torch.channels_last_3d


def randomise(module: nn.Module) -> nn.Module:
    """Leave no parameter at its initial value, where many mistakes do not show."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def as_numpy(*tensors: torch.Tensor) -> list:
    return [tensor.detach().double().numpy() for tensor in tensors]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9, 17])  # image, even, odd, a full window, 8 k + 1
@pytest.mark.parametrize("with_grad", [True, False])
def test_temporal_conv_equals_its_definition(frames: int, stride: int, with_grad: bool) -> None:
    layer, x = randomise(TemporalConv(4, stride)), torch.randn(2, 4, frames, 3, 5)
    expected = temporal_conv_by_loops(*as_numpy(x, layer.weight.squeeze(-1), layer.bias), stride)
    with torch.set_grad_enabled(with_grad):
        actual = layer(x)
    # 12 float32 products of values below 5 and 1.5 round by less than 12 * 1.2e-7 * 7.5 = 1.1e-5; zeros in place of the
    # repeated frame would differ by more than 0.1.
    torch.testing.assert_close(actual.double(), torch.from_numpy(expected), rtol=0, atol=1.1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_temporal_conv_gradients(frames: int, stride: int) -> None:
    layer = randomise(TemporalConv(3, stride)).double()
    x = torch.randn(2, 3, frames, 2, 2, dtype=torch.double, requires_grad=True)

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.weight, layer.bias))


@pytest.mark.parametrize("stride", [1, 2])
def test_temporal_conv_starts_as_the_identity(stride: int) -> None:
    x = torch.randn(1, 6, 9, 2, 3)
    assert torch.equal(TemporalConv(6, stride)(x), x[:, :, ::stride])


@pytest.mark.parametrize(
    ("layer", "frames"),
    [(Conv2_5d(3, 4), 1), (Conv2_5d(3, 4), 3), (Upsample(3), 3), (Downsample(3), 3), (Downsample(3), 4)],
)
def test_zeros_outside_the_clip_are_zeros_of_what_is_convolved(layer: nn.Module, frames: int) -> None:
    """The spatial bias is in every frame and in none of the zeros: it is not one more bias of the temporal part."""
    randomise(layer).temporal.zero_padded = True
    x = torch.randn(2, 3, frames, 4, 6)
    if isinstance(layer, Upsample):
        grown = nn.functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    else:
        grown = nn.functional.pad(x, (0, 1, 0, 1)) if isinstance(layer, Downsample) else x
    between = torch.stack([layer.spatial(frame) for frame in grown.unbind(2)], dim=2)
    between = between.repeat_interleave(2, dim=2) if isinstance(layer, Upsample) else between
    stride = layer.temporal.stride[0]
    weight, bias = layer.temporal.weight.squeeze(-1), layer.temporal.bias
    expected = temporal_conv_by_loops(*as_numpy(between, weight, bias), stride, zeros=True)
    # 27 + 12 products of values below 4: rounding below 5e-5; a frame in place of zeros, or a bias in them, more than 0.1.
    torch.testing.assert_close(layer(x).double(), torch.from_numpy(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize("per", ["frame", "clip"])
@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_equals_its_definition(per: str, silu: bool) -> None:
    layer = randomise(GroupNorm(8, groups=4, per=per, silu=silu))
    x = torch.randn(2, 8, 3, 4, 5) * torch.linspace(0.5, 2, 3)[:, None, None]  # frames that differ in scale
    expected = torch.from_numpy(group_norm_by_loops(*as_numpy(x, layer.weight, layer.bias), groups=4, per=per))
    expected = nn.functional.silu(expected) if silu else expected
    # Statistics of 40 to 120 values: rounding stays below 1e-5, statistics of the other kind differ by more than 0.1.
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("over", ["space", "time"])
def test_attention_equals_its_definition(over: str) -> None:
    layer = randomise(Attention(8, groups=4, group_norm="frame", over=over))
    x = torch.randn(2, 8, 3, 2, 4)
    parameters = {name: value.detach().double().numpy() for name, value in layer.named_parameters()}
    expected = attention_by_loops(x.double().numpy(), parameters, groups=4, over=over)
    # 8-term products through a softmax: below 1e-5; attention along the wrong axis differs by more than 0.1.
    torch.testing.assert_close(layer(x).double(), torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_attention_with_large_scores_stays_finite_in_half_precision() -> None:
    """12 x 12 x 512 channels is more than float16 holds; divided by sqrt(512) it is far from that."""
    query = torch.full((1, 3, 512), 12.0, dtype=torch.float16)
    key = query * torch.tensor([1, -1, 1])[None, :, None]
    value = torch.randn(1, 3, 512).half()
    expected = nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(attend_with_scores(query, key, value).double(), expected, atol=2e-3, rtol=2e-3)


def test_temporal_attention_has_no_effect_at_first() -> None:
    x = torch.randn(1, 8, 4, 3, 3)
    assert torch.equal(Attention(8, groups=4, group_norm="frame", over="time")(x), x)


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_resampling_changes_each_extent_by_two(frames: int) -> None:
    x = torch.randn(1, 4, frames, 6, 8)
    assert Downsample(4)(x).shape == (1, 4, (frames + 1) // 2, 3, 4)
    assert Upsample(4)(x).shape == (1, 4, 2 * frames, 12, 16)


def test_upsample_equals_nearest_neighbour_and_the_two_convolutions() -> None:
    layer, x = randomise(Upsample(4)), torch.randn(2, 4, 3, 4, 5)
    enlarged = nn.functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    spatial = torch.stack([layer.spatial(frame) for frame in enlarged.unbind(2)], dim=2).repeat_interleave(2, dim=2)
    expected = temporal_conv_by_loops(*as_numpy(spatial, layer.temporal.weight.squeeze(-1), layer.temporal.bias), 1)
    # 36 + 12 products of values below 4: rounding below 5e-5; a frame or pixel off by one differs by more than 1.
    torch.testing.assert_close(layer(x).double(), torch.from_numpy(expected), rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2_5d(8, 12),
        ResidualBlock(8, 12, groups=4, group_norm="frame"),
        ResidualBlock(8, 8, groups=4, group_norm="clip"),
        Attention(8, groups=4, group_norm="frame", over="space"),
        Attention(8, groups=4, group_norm="frame", over="time"),
        Downsample(8),
        Upsample(8),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_memory_stays_channels_last(layer: nn.Module) -> None:
    x = torch.randn(2, 8, 4, 6, 10).contiguous(memory_format=CHANNELS_LAST)
    assert layer(x).is_contiguous(memory_format=CHANNELS_LAST)


def test_no_layer_uses_conv3d() -> None:
    x = torch.randn(1, 8, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        Upsample(8)(Downsample(8)(ResidualBlock(8, 8, groups=4, group_norm="frame")(x))).sum().backward()
    convolved = [event.input_shapes[0] for event in profile.events() if event.name == "aten::convolution"]
    assert convolved
    assert all(len(shape) == 4 for shape in convolved), convolved

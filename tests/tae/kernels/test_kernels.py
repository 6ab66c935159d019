"""The GPU kernels against float64 by PyTorch; without a GPU, Triton's interpreter runs the same tests on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tae import TemporalAutoencoder
from tae.losses.lpips import level_distance
from tae.model.temporal_conv import (
    replicate_padded_conv,
    replicate_padded_conv_backward,
    sum_per_channel,
    upsampling_weight,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter has no bfloat16 products
# Inputs are exact in both precisions, sums are float32, and one rounding at the end is left: 2^-9 of each value in
# bfloat16, 2^-12 in float16. A tap, a frame or a group off by one changes the result by more than 0.1 of its norm.
BOUND = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.mark.parametrize(
    "chosen", ["not whole_model", pytest.param("whole_model", marks=pytest.mark.slow)], ids=["each", "whole model"]
)
def test_kernels_by_interpreter(chosen: str) -> None:
    """So that a machine without a GPU checks their arithmetic too."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "-k",
        chosen,
        str(Path(__file__)),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TAE_REQUIRE_GPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random (b, c, ...) values, exact in `dtype`, stored (b, ..., c)."""
    b, c, *rest = shape
    return torch.randn(b, *rest, c, device=DEVICE).to(dtype).movedim(-1, 1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.cpu().double() - expected).norm() / expected.norm()).item()


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("per", ["frame", "clip"])
@pytest.mark.parametrize(
    ("channels", "size", "offset", "silu"),
    [(32, (9, 7), 0.0, False), (128, (12, 11), 30.0, True), (64, (1, 1), 1.0, True)],
)
def test_group_norm_silu(dtype: torch.dtype, per: str, channels: int, size: tuple, offset: float, silu: bool) -> None:
    from tae.kernels.group_norm import group_norm_silu

    x = (channels_last(2, channels, 3, *size) + offset).to(dtype).requires_grad_()
    weight, bias = (torch.randn(channels, device=DEVICE, requires_grad=True) for _ in range(2))
    grad, groups = channels_last(*x.shape, dtype=dtype), 8
    samples = 6 if per == "frame" else 2
    out = group_norm_silu(x, samples, weight, bias, groups, 1e-6, silu)
    out.backward(grad)

    x64, weight64, bias64 = double(x, weight, bias)
    view = x64.transpose(1, 2).flatten(0, 1) if per == "frame" else x64
    expected = F.group_norm(view, groups, weight64, bias64, 1e-6)
    expected = expected.unflatten(0, (2, 3)).transpose(1, 2) if per == "frame" else expected
    expected = F.silu(expected) if silu else expected
    expected.backward(grad.cpu().double())
    bound = BOUND[dtype] if offset < 10 else 10 * BOUND[dtype]  # 30 deviations from zero, x itself has lost a digit
    assert relative_error(out.detach(), expected.detach()) < bound
    assert relative_error(x.grad, x64.grad) < bound
    assert relative_error(weight.grad, weight64.grad) < bound
    assert relative_error(bias.grad, bias64.grad) < bound


@pytest.mark.gpu
@pytest.mark.parametrize(("stride", "upsample"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_temporal_conv(frames: int, stride: int, upsample: bool) -> None:
    from tae.kernels.temporal_conv import temporal_conv, temporal_conv_gradient

    x, bias = channels_last(2, 64, frames, 10, 5, dtype=HALF), torch.randn(64, device=DEVICE)
    weight = torch.randn(64, 64, 3, 1, device=DEVICE) * 0.1
    weight = (upsampling_weight(weight, (2,)) if upsample else weight).to(HALF)
    expected = replicate_padded_conv(*double(x, weight, bias), None, stride, upsample).detach()
    residual, grad = (channels_last(*expected.shape, dtype=HALF) for _ in range(2))
    out = temporal_conv(x, weight, bias, residual, stride, upsample)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative_error(out, expected + residual.cpu().double()) < BOUND[HALF]
    if stride == 1 or upsample:
        columns = [tensor.cpu().double().flatten(3) for tensor in (grad, x)]
        expected, _ = replicate_padded_conv_backward(*columns, weight.cpu().double(), stride, upsample, (True, False))
        actual = temporal_conv_gradient(grad, weight, frames, upsample).flatten(3)
        assert relative_error(actual, expected) < BOUND[HALF]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_unit_distance(dtype: torch.dtype) -> None:
    from tae.kernels.lpips import unit_distance

    x, y = (channels_last(3, 64, 5, 7, dtype=dtype).relu() for _ in range(2))
    y[0, :, 1, 1] = 0  # no direction there: the gradient stays finite
    weight, upstream = torch.rand(64, device=DEVICE), torch.randn(3, device=DEVICE)
    out = unit_distance(x, y.requires_grad_(), weight)
    out.backward(upstream)
    x64, y64, weight64 = double(x, y, weight)
    difference = x64 / (x64.norm(dim=1, keepdim=True) + 1e-10)
    difference = difference - y64 / (torch.linalg.vector_norm(y64, dim=1, keepdim=True) + 1e-10)
    expected = (difference.square() * weight64[:, None, None]).sum(1).mean((1, 2))
    expected.backward(upstream.cpu().double())
    assert relative_error(out.detach(), expected.detach()) < BOUND[torch.float32]
    defined = torch.ones_like(y64, dtype=torch.bool)
    defined[0, :, 1, 1] = False
    assert y.grad.isfinite().all()
    assert relative_error(y.grad.cpu()[defined], y64.grad[defined]) < BOUND[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize(("group_norm", "checkpointing"), [("frame", False), ("clip", True)])
def test_whole_model_with_and_without_kernels(
    group_norm: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every place that chooses a kernel, forward and backward, in autocast."""
    from tae.kernels.available import fused_kernels
    from tae.model import layers, temporal_conv

    model = TemporalAutoencoder(64, (1, 1), 4, 1, 1, norm_groups=8, group_norm=group_norm).to(DEVICE)
    for name, parameter in model.named_parameters():
        if "temporal" in name and parameter.ndim > 1:  # no longer the identity
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.gradient_checkpointing = checkpointing
    clip = channels_last(1, 3, 3, 4, 6).clamp(-1, 1)

    def loss_and_gradients(fused: bool) -> tuple[float, list[Tensor]]:
        for module in (layers, temporal_conv):
            monkeypatch.setattr(module, "fused_kernels", fused_kernels if fused else lambda x, name: None)
        model.zero_grad()
        with torch.autocast(DEVICE, HALF):
            out = model(clip, sample_posterior=False)
            loss = (out.reconstruction.float() - clip).square().mean() + out.latents.square().mean()
        (1000 * loss).backward()  # float16 would lose small gradients
        return loss.item(), [parameter.grad.cpu().double() for parameter in model.parameters()]

    plain, plain_gradients = loss_and_gradients(fused=False)
    fused, fused_gradients = loss_and_gradients(fused=True)
    # Each path rounds in its own places in some twenty layers. A key's bias has no gradient but rounding: hence the floor.
    floor = 0.01 * torch.cat([gradient.flatten() for gradient in plain_gradients]).norm()
    assert fused == pytest.approx(plain, rel=4 * BOUND[HALF])
    for actual, expected in zip(fused_gradients, plain_gradients, strict=True):
        assert (actual - expected).norm() <= 20 * BOUND[HALF] * max(expected.norm(), floor)


def test_level_distance_without_kernels() -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    cosine = F.cosine_similarity(x, y, dim=1)  # squared distance of unit vectors: 2 - 2 cosine
    torch.testing.assert_close(level_distance(x, y, torch.ones(5)), (2 - 2 * cosine).mean((1, 2)), rtol=1e-5, atol=0)


def test_sum_per_channel() -> None:
    grad = torch.randn(2, 4, 3, 35)
    torch.testing.assert_close(sum_per_channel(grad), grad.double().sum((0, 2, 3)).float(), rtol=1e-5, atol=1e-5)

"""Matching of features, against NumPy in float64."""

import numpy as np
import pytest
import torch

from tae import TemporalAutoencoder, TinyDecoder, UserError
from tae.losses import Context, FeatureMatching
from tae.model.distillation import Distillation


def distillation() -> Distillation:
    torch.manual_seed(0)
    teacher = TemporalAutoencoder(4, (1, 1, 1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=2)
    return Distillation(teacher, TinyDecoder(width=4, blocks=1), matches_features=True)


def test_the_value_is_its_definition() -> None:
    model, clip = distillation(), torch.rand(2, 3, 9, 16, 24) * 2 - 1
    output = model(clip)
    expected = 0.0
    for layer, own, their in zip(
        model.projections, output.features, model.teacher.decoder_features(output.latents), strict=False
    ):
        kernel, bias = (value.detach().double().numpy() for value in (layer.weight[:, :, 0, 0], layer.bias))
        projected = np.einsum("oc,bcthw->bothw", kernel, own.detach().double().numpy()) + bias[:, None, None, None]
        target = their.detach().double().numpy()
        assert projected.shape == target.shape, "of the same positions, so that nothing is resized"
        expected += np.abs(projected - target).mean() / np.abs(target).mean() / 2
    value = FeatureMatching(1.0)(Context(clip, output, model, 0)).item()
    assert value == pytest.approx(expected, rel=1e-5)  # sums of float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_float32_of_features_of_half_precision(dtype: torch.dtype) -> None:
    model, clip = distillation(), torch.rand(1, 3, 8, 16, 16) * 2 - 1
    whole = FeatureMatching(1.0)(Context(clip, model(clip, sample_posterior=False), model, 0))
    with torch.autocast("cpu", dtype):
        output = model(clip, sample_posterior=False)
        assert output.features[0].dtype == dtype
        value = FeatureMatching(1.0)(Context(clip, output, model, 0))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(whole.item(), rel=2e-2)  # bfloat16 rounds by 4e-3 in each of a few layers
    value.backward()
    assert all(parameter.grad.any() for parameter in model.projections.parameters())


def test_other_models_have_no_features_to_match() -> None:
    model = distillation().teacher
    clip = torch.zeros(1, 3, 1, 8, 8)
    with pytest.raises(UserError, match=r"loss\.features compares a tiny decoder with its teacher"):
        FeatureMatching(1.0)(Context(clip, model(clip), model, 0))

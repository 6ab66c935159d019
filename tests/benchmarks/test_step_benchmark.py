"""What the benchmark of a step compares computes the same, and a difference is noticed."""

import pytest
import torch

from benchmarks.step import BOUNDS, VARIANTS, Step, build_loss, check_agreement, relative_difference, state_dict

SMALL = {"base_channels": 8, "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 4}


def loss_and_gradient(variant: str, size: tuple[int, int, int]) -> tuple[float, torch.Tensor]:
    model = VARIANTS[variant](SMALL)
    model.load_state_dict(state_dict(SMALL))
    torch.manual_seed(0)
    clip = torch.rand(1, *size, 3).movedim(-1, 1) * 2 - 1
    return Step(model, build_loss(lpips=False), clip, torch.float32).loss_and_gradient()


@pytest.mark.parametrize("size", [(8, 32, 24), (5, 19, 26)])
def test_variants_agree(size: tuple[int, int, int]) -> None:
    loss, gradient = loss_and_gradient("naive", size)
    for variant in ("conv3d", "shipped", "checkpointed"):
        other, other_gradient = loss_and_gradient(variant, size)
        # Float32 in another order of sums. A wrong frame at the border or a wrong tap gives 1e-2 and more.
        assert other == pytest.approx(loss, rel=1e-5)
        assert relative_difference(other_gradient, gradient) < 1e-4


def test_a_variant_that_computes_something_else_fails() -> None:
    row = {"variant": "shipped", "loss, rel. difference": 0.0, "gradient, rel. difference": BOUNDS["fp32"][1]}
    check_agreement([row], "fp32")
    for wrong in (1.01 * BOUNDS["fp32"][1], float("nan")):
        with pytest.raises(SystemExit, match="shipped"):
            check_agreement([row | {"gradient, rel. difference": wrong}], "fp32")

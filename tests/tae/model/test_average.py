"""The moving average of weights against its definition."""

import pytest
import torch
from torch import nn

from tae.model.average import WeightAverage


def models_weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_is_its_definition(decay: float) -> None:
    """In float64, written out: the share of each step's weights is the product of all later decays."""
    model = nn.Linear(3, 2)
    seen, average = [model.weight.detach().double()], WeightAverage(model, decay)
    for n in range(1, 31):
        with torch.no_grad():
            model.weight += torch.randn_like(model.weight)
        seen.append(model.weight.detach().double())
        average.update(n)
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, 31)]
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for n, weights in enumerate(seen):
        share = 1.0 if n == 0 else 1 - decays[n - 1]
        for later in decays[n:]:
            share *= later
        expected += share * weights
    # 30 roundings of values up to 20: below 30 * 20 * 6e-8 = 4e-5. Without the warm-up a decay of 0.999 is off by 1.
    torch.testing.assert_close(average.values["weight"].double(), expected, rtol=0, atol=4e-5)


def test_what_is_not_trained_is_not_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert set(WeightAverage(model, 0.9).values) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_has_either(dtype: torch.dtype) -> None:
    """It is float32 whatever the weights are: in bfloat16 an update of a thousandth is rounded away."""
    model = nn.Linear(2, 2).to(dtype)
    average, before = WeightAverage(model, 0.9), models_weights(model)
    with torch.no_grad():
        model.weight += 1
    average.update(1)
    trained = models_weights(model)
    average.swap_in()
    average.swap_in()  # a validation within another does not lose the weights
    assert average.values["weight"].dtype == torch.float32
    torch.testing.assert_close(model.weight, average.values["weight"].to(dtype), rtol=0, atol=0)
    assert not torch.equal(model.weight, before[0])
    assert torch.equal(average.raw()["weight"], trained[0])
    average.swap_out()
    average.swap_out()
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), trained, strict=True))


def test_the_layout_in_memory_stays() -> None:
    """Another one would convert the weights in each convolution of a validation."""
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    average.load({name: value.contiguous() for name, value in average.values.items()})
    average.swap_in()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)

"""The costs of the ablation's arms: how steps of several kinds become one mean."""

import argparse

import pytest

from benchmarks import ablation_costs
from benchmarks.ablation_costs import ARMS, compose_arm, run, streams_of
from tae.planning.meter import Cost
from tae.planning.planner import Planner

PIXELS = 32 * 256 * 256


@pytest.fixture
def counted_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs a FLOP and a byte for each pixel, and with an adversary twice as many."""

    def step(self: Planner, shape: tuple[int, int, int, int], loss: object, with_adversary: bool = False) -> Cost:
        clips, frames, height, width = shape
        pixels = clips * frames * height * width * (2 if with_adversary else 1)
        return Cost(flops=pixels, peak_bytes=pixels)

    monkeypatch.setattr(Planner, "step", step)
    monkeypatch.setattr(ablation_costs, "build_losses", lambda cfg: {"with LPIPS": None})


def test_a_step_is_the_mean_of_a_run_and_memory_its_largest(counted_pixels: None) -> None:
    arms = ["base", "images_1_4", "patch_adversary"]
    base, images, adversary, together = run(argparse.Namespace(arms=arms, overrides=[], device="cpu", seconds=0.36))
    assert base["TFLOP a step"] == pytest.approx(PIXELS / 1e12)
    assert base["hours"] == pytest.approx(2.0)  # 20,000 steps
    assert images["of the first"] == pytest.approx((3 + 4 / 32) / 4)  # four images in place of each fourth clip
    assert images["peak (GB)"] == base["peak (GB)"]
    assert adversary["of the first"] == pytest.approx(1.5)  # for the second half of the steps
    assert adversary["peak (GB)"] == pytest.approx(2 * base["peak (GB)"])
    assert together["hours"] == pytest.approx(sum(row["hours"] for row in (base, images, adversary)))


def test_the_base_is_the_first_arm_and_has_one_stream() -> None:
    assert ARMS[0] == "base"
    assert streams_of(compose_arm("base")) == [(1.0, (1, 32, 256, 256))]
    assert streams_of(compose_arm("images_1_2")) == [(0.5, (1, 32, 256, 256)), (0.5, (4, 1, 256, 256))]

"""The benchmark of an adversary's beginning: who equals whom until when, and what is called a shock."""

import argparse
import copy

import pytest
import torch

from benchmarks.adversary import WITHOUT, Run, make_adversary, shock, take_step
from tae import TemporalAutoencoder
from tae.losses import Objective, Reconstruction

SETTINGS = argparse.Namespace(channels=4, lr=1e-3, lr_adversary=1e-3, dtype="fp32")


def test_a_shock_is_the_largest_rise_over_the_run_without() -> None:
    curve = [
        {"step": step, WITHOUT: 0.1, "prepared, 0.1": value}
        for step, value in ((0, 0.2), (10, 0.2), (20, 0.104), (30, 0.102), (60, 0.3))
    ]
    assert shock(curve, begin=10, within=40)["prepared, 0.1"] == pytest.approx(0.04)


def make_model() -> TemporalAutoencoder:
    torch.manual_seed(0)
    return TemporalAutoencoder(4, (1, 1, 1, 2), encoder_blocks=1, decoder_blocks=1, norm_groups=2)


def runs_of(model: TemporalAutoencoder) -> dict[str, Run]:
    """The one without an adversary, and one that hears its own from the second step on."""
    adversary = make_adversary(SETTINGS, seed=0, start=0, alone=1, ramp=0, layers=2)
    runs = {WITHOUT: Run(None), "prepared": Run(adversary)}
    runs[WITHOUT].begin(model, lr=1e-3)
    return runs


OBJECTIVE, CLIP = Objective(reconstruction=Reconstruction(1.0)), torch.rand(1, 3, 2, 16, 16)


def test_a_run_is_the_one_without_until_its_adversary_is_heard() -> None:
    runs = runs_of(make_model())
    take_step(runs, OBJECTIVE, CLIP, 0, SETTINGS)
    assert runs["prepared"].model is None
    assert len(runs["prepared"].adversary.optimizer.state) > 0  # trained alone
    take_step(runs, OBJECTIVE, CLIP, 1, SETTINGS)
    pairs = zip(runs["prepared"].model.parameters(), runs[WITHOUT].model.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("stop", [1, 2])
def test_runs_that_are_resumed_end_in_the_same_bits(stop: int) -> None:
    """Stopped while the discriminators are trained alone, and after."""
    whole, first, resumed = (runs_of(make_model()) for _ in range(3))
    for step in range(4):
        take_step(whole, OBJECTIVE, CLIP, step, SETTINGS)
    for step in range(stop):
        take_step(first, OBJECTIVE, CLIP, step, SETTINGS)
    for name, run in resumed.items():
        run.load_state_dict(copy.deepcopy(first[name].state_dict()), make_model(), lr=1e-3)
    for step in range(stop, 4):
        take_step(resumed, OBJECTIVE, CLIP, step, SETTINGS)
    for name, run in whole.items():
        pairs = zip(run.model.parameters(), resumed[name].model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), name

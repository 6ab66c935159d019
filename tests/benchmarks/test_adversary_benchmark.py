"""The benchmark of an adversary's beginning: who equals whom until when, and what is called a shock."""

import argparse

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


def test_a_run_is_the_one_without_until_its_adversary_is_heard() -> None:
    torch.manual_seed(0)
    model = TemporalAutoencoder(4, (1, 1, 1, 2), encoder_blocks=1, decoder_blocks=1, norm_groups=2)
    adversary = make_adversary(SETTINGS, seed=0, start=0, alone=1, ramp=0, layers=2)
    runs = {WITHOUT: Run(None), "prepared": Run(adversary)}
    runs[WITHOUT].begin(model, lr=1e-3)
    objective, clip = Objective(reconstruction=Reconstruction(1.0)), torch.rand(1, 3, 2, 16, 16)
    take_step(runs, objective, clip, 0, SETTINGS)
    assert runs["prepared"].model is None
    assert len(adversary.optimizer.state) > 0  # trained alone
    take_step(runs, objective, clip, 1, SETTINGS)
    pairs = zip(runs["prepared"].model.parameters(), runs[WITHOUT].model.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)

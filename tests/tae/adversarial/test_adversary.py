"""The adversary's step: phases, weights, gradients, what is claimed, what it remembers, several processes."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tae import TemporalAutoencoder, UserError
from tae.adversarial.adversary import PATIENCE, PatchAdversary
from tae.losses import KL, Objective, Reconstruction
from tae.losses.step import compute_loss, training_step

SETTINGS: dict[str, Any] = {
    "start": 0,
    "alone": 0,
    "ramp": 0,
    "weight": 0.5,
    "mode": "adaptive",
    "loss": "hinge",
    "frame_channels": 4,
    "clip_channels": 4,
    "layers": 2,
    "r1": 0.0,
    "r1_deviation": 0.01,
    "lecam": 0.0,
    "max_norm": 1.0,
    "optimizer": partial(torch.optim.AdamW, lr=1e-3, betas=(0.5, 0.9)),
}
CPU = torch.device("cpu")


def make_adversary(**changes: Any) -> PatchAdversary:
    torch.manual_seed(5)
    adversary = PatchAdversary(**(SETTINGS | changes))
    adversary.prepare(CPU, scaled=False)
    return adversary


def make_model() -> TemporalAutoencoder:
    torch.manual_seed(0)
    return TemporalAutoencoder(4, (1, 1, 1, 2), encoder_blocks=1, decoder_blocks=1, norm_groups=2)


def objective() -> Objective:
    return Objective(reconstruction=Reconstruction(1.0), kl=KL(1e-6))


def clips(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 5, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_the_weight_rises_after_the_discriminators_were_alone() -> None:
    adversary = make_adversary(start=2, alone=3, ramp=4)
    assert [adversary.factor(step) for step in range(11)] == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert make_adversary(start=2).factor(2) == 1


def test_before_its_start_nothing_is_changed_and_its_memory_was_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of a late step runs once, in the first one, and leaves no trace in the networks or in the gradient."""
    model, adversary = make_model(), make_adversary(start=5, alone=1, ramp=1, r1=1.0, lecam=1e-3)
    before = copy.deepcopy(adversary.state_dict())
    called: list[str] = []
    for name in ("train_discriminators", "adversarial_term", "balance", "update"):
        method = getattr(adversary, name)
        monkeypatch.setattr(adversary, name, lambda *a, m=method, n=name: called.append(n) or m(*a))
    for step in range(2):
        torch.manual_seed(step)
        model.zero_grad()
        loss = compute_loss(model, objective(), clips(), step, adversary)
        loss.total.backward()
    assert sorted(called) == ["adversarial_term", "balance", "train_discriminators", "update"]
    assert same(before, adversary.state_dict())
    assert all(parameter.grad is None for parameter in adversary.networks.parameters())
    assert set(loss.terms) == {"reconstruction", "kl", "outlier_rate"}
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.manual_seed(1)
    compute_loss(model, objective(), clips()).total.backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, model.parameters(), strict=True))


def test_what_does_not_fit_fails_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    adversary = make_adversary(start=1000)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("the device is full")

    monkeypatch.setattr(adversary, "adversarial_term", full)
    with pytest.raises(torch.OutOfMemoryError):
        compute_loss(make_model(), objective(), clips(), 0, adversary)


@pytest.mark.parametrize("mode", ["adaptive", "fixed"])
@pytest.mark.parametrize("loss", ["hinge", "pair"])
def test_the_total_is_its_definition(mode: str, loss: str) -> None:
    """Computed a second time from the discriminators as they are, the objective's gradient and the adversary's apart."""
    model, adversary = make_model(), make_adversary(mode=mode, loss=loss, ramp=4)
    torch.manual_seed(1)
    result = compute_loss(model, objective(), clips(), 1, adversary)
    torch.manual_seed(1)
    output = model(clips())
    plain = objective().terms
    rest = (output.reconstruction - clips()).abs().mean() + plain[
        "kl"
    ].weight * output.posterior.kl().sum() / clips().numel()
    fakes = [network(output.reconstruction) for network in adversary.networks.values()]
    reals = [network(clips()) for network in adversary.networks.values()]
    if loss == "hinge":
        term = sum(-fake.mean() for fake in fakes) / 2
    else:
        term = sum((1 + (real.detach() - fake).exp()).log().mean() for real, fake in zip(reals, fakes, strict=True)) / 2
    last = model.decoder.conv_out.spatial.weight
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (rest, term)]
    factor = norms[0] / (norms[1] + 1e-4) if mode == "adaptive" else 1.0
    weight = 0.5 * 0.5 * factor  # the second of four steps of the ramp
    # Sums of another order in float32, divided by a norm of about 1e-3.
    torch.testing.assert_close(result.total, rest + weight * term, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.terms["adversarial"], term.detach(), rtol=1e-4, atol=1e-6)


def test_neither_gets_the_others_gradient() -> None:
    model, adversary = make_model(), make_adversary()
    result = compute_loss(model, objective(), clips(), 0, adversary)
    assert all(parameter.grad is None for parameter in model.parameters())
    of_discriminators = [parameter.grad.clone() for parameter in adversary.networks.parameters()]
    result.total.backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(of_discriminators, adversary.networks.parameters(), strict=True))
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_clip_is_decoded_once_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, adversary, decoded = make_model(), make_adversary(loss="pair", r1=1.0), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda *a, **k: decoded.append(1) or decode(*a, **k))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    frames = torch.randint(0, 256, (1, 5, 16, 16, 3), dtype=torch.uint8)
    training_step(model, objective(), optimizer, frames, torch.autocast("cpu", enabled=False), adversary=adversary)
    assert len(decoded) == 1


def test_the_discriminators_learn_to_tell_them_apart() -> None:
    adversary, real = make_adversary(optimizer=partial(torch.optim.AdamW, lr=1e-2)), clips()
    blurred = real.mean(dim=(3, 4), keepdim=True).expand_as(real).contiguous()
    accuracies = []
    for _ in range(60):
        accuracies.append(adversary.train_discriminators(real, blurred)["discriminator_accuracy"].item())
        adversary.update()
    assert accuracies[0] < 0.8 < 0.99 < accuracies[-1]


def test_batches_of_one_step_are_averaged() -> None:
    """As `accumulate_grad_batches` has it."""
    both, halves = make_adversary(), make_adversary()
    for _ in range(20):  # until power iteration has settled: it does one step for each batch
        both.train_discriminators(clips(), clips().flip(2))
        halves.train_discriminators(clips(), clips().flip(2))
    for adversary in (both, halves):
        adversary.optimizer.zero_grad()
        adversary.batches = 0
    both.train_discriminators(clips(), clips().flip(2))
    for half in clips().split(1):
        halves.train_discriminators(half, half.flip(2))
    norms = [adversary.update() for adversary in (both, halves)]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-3, atol=0)
    assert both.update() is None


def test_what_it_remembers_goes_on_exactly() -> None:
    settings = {"r1": 1.0, "lecam": 1e-3}
    whole, stopped = (make_adversary(**settings) for _ in range(2))

    def steps(adversary: PatchAdversary, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            adversary.train_discriminators(clips(), clips().flip(2) * 0.5)
            adversary.update()

    steps(whole, range(6))
    steps(stopped, range(3))
    state = copy.deepcopy(stopped.state_dict())
    torch.manual_seed(9)
    resumed = PatchAdversary(**(SETTINGS | settings))
    resumed.prepare(CPU, scaled=False, state=state)
    steps(resumed, range(3, 6))
    assert same(whole.state_dict(), resumed.state_dict())


def test_it_says_when_one_side_has_lost() -> None:
    adversary = make_adversary()
    assert adversary.warnings() == []
    adversary.streaks = torch.tensor([PATIENCE, 0])
    assert "lower adversary.optimizer.lr" in adversary.warnings()[0].lower()
    adversary.train_discriminators(clips(), clips())  # it tells nothing apart
    assert adversary.streaks.tolist() == [0, 1]
    adversary.streaks = torch.tensor([0, PATIENCE])
    assert adversary.warnings()[0].startswith("The discriminator's logits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_channels": 0, "clip_channels": 0}, "leave no discriminator"),
        ({"mode": "both"}, "mode=both is not allowed"),
        ({"alone": -1}, "alone=-1 is not allowed"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_adversary(**changes)


def test_frames_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match="16x16 are too small"):
        compute_loss(make_model(), objective(), clips(), 0, make_adversary(layers=5))


WORLD = 2


def three_steps(model: TemporalAutoencoder, adversary: PatchAdversary, real: Tensor) -> dict[str, Tensor]:
    """Discriminators and adaptive weight after three steps on what a fixed model decodes."""
    for _ in range(3):
        with torch.no_grad():
            latents = model.encode(real).mode()
        decoded = model.decode(latents, num_frames=5)
        total = (decoded - real).abs().mean()
        _, figures = adversary(real, decoded, total, model.last_layer, 0)
        adversary.update()
    return adversary.networks.state_dict() | {"weight": figures["adversarial_weight"]} | adversary.logit_means


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    adversary = PatchAdversary(**(SETTINGS | {"lecam": 1e-3}))  # of other weights in each process, until it is prepared
    if rank == 0:
        adversary = make_adversary(lecam=1e-3)
    else:
        adversary.prepare(CPU, scaled=False)
    torch.save(three_steps(make_model(), adversary, clips()[rank : rank + 1]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one_with_both_batches(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    expected = three_steps(make_model(), make_adversary(lecam=1e-3), clips())
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            # Sums of another order, through Adam, which divides by the gradient's size: three steps of 1e-3 are 3e-3.
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)

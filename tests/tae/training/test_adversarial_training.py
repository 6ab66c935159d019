"""A training with an adversary: what is counted, logged, saved and exported, and what stops it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from reliability.tiny_run import assert_same_state, train_here

from tae import TemporalAutoencoder, UserError
from tae.adversarial.adversary import PATIENCE, PatchAdversary
from tae.export import main as export
from tae.model.checkpoint_file import read_checkpoint
from tae.runtime.cli import CONFIG_FOLDER

SMALL = ("adversary=patch", "adversary.frame_channels=4", "adversary.clip_channels=4", "adversary.layers=2")
PHASES = ("adversary.start=1", "adversary.alone=1", "adversary.ramp=2")
RUN = ("trainer.max_steps=5", "trainer.val_check_interval=5", "callbacks.videos.num_clips=0", "page.clips=0")
ALL = (*RUN, *SMALL, *PHASES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_here(folder, cache, *ALL)
    return folder


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def test_the_autoencoders_steps_are_the_only_count(run: Path) -> None:
    checkpoint = read_checkpoint(last(run))
    assert checkpoint["global_step"] == 5
    assert len(checkpoint["optimizer_states"]) == 1
    moments = checkpoint["adversary"]["optimizer"]["state"].values()
    assert {int(state["step"]) for state in moments} == {4}  # from the second step on, one in each
    assert json.loads((run / "metrics.json").read_text())["training"]["steps"] == 5


def test_what_is_logged(run: Path) -> None:
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row.get("train/loss")}
    names = ("logits_real", "logits_fake", "discriminator_accuracy", "adversarial_weight", "gradient_norm")
    for name in (*names, "adversarial", "discriminator_loss", "discriminator_gradient_norm"):
        steps = {step for step, row in rows.items() if row[f"train/{name}"]}
        assert steps == ({0, 1, 2, 3, 4} if name == "gradient_norm" else {1, 2, 3, 4}), name
    weights = [float(rows[step]["train/adversarial_weight"]) for step in range(1, 5)]
    assert weights[0] == 0 < min(weights[1:])


def test_nothing_of_it_is_exported(run: Path, tmp_path: Path) -> None:
    own = set(TemporalAutoencoder(**read_checkpoint(last(run))["architecture"]).state_dict())
    assert set(read_checkpoint(last(run))["state_dict"]) == {f"model.{name}" for name in own}
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        export(compose("export", overrides=[f"ckpt={last(run)}", f"output={tmp_path / 'model'}"]))
    assert set(TemporalAutoencoder.from_pretrained(tmp_path / "model").state_dict()) == own


def test_until_it_starts_the_run_is_one_without(cache: Path, tmp_path: Path) -> None:
    """To the bit, though its memory was claimed; what else the seed gives is the same too."""
    train_here(tmp_path / "with", cache, *ALL, "adversary.start=100")
    train_here(tmp_path / "without", cache, *RUN)
    assert_same_state(*(last(tmp_path / name) for name in ("with", "without")), apart={"adversary"})


def test_a_run_continues_with_one_and_without_it(run: Path, cache: Path, tmp_path: Path) -> None:
    train_here(tmp_path / "without", cache, *RUN, f"init_from={last(run)}", "trainer.max_steps=1")
    assert "adversary" not in read_checkpoint(last(tmp_path / "without"))
    start = f"init_from={last(tmp_path / 'without')}"
    train_here(tmp_path / "with", cache, *RUN, *SMALL, start, "adversary.alone=0", "trainer.max_steps=1")
    assert "adversary" in read_checkpoint(last(tmp_path / "with"))
    with pytest.raises(UserError, match=r"adversary.* was .* and is "):
        train_here(tmp_path / "with", cache, *RUN, "trainer.max_steps=2")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_discriminators_that_are_not_finite_stop_the_run(
    what: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, update = PatchAdversary.train_discriminators, PatchAdversary.update

    def spoilt_loss(self: PatchAdversary, *args: Any) -> dict[str, torch.Tensor]:
        figures = train(self, *args)
        return figures | {"discriminator_loss": figures["discriminator_loss"] * torch.nan}

    def spoilt_gradient(self: PatchAdversary) -> torch.Tensor | None:
        if self.batches:
            next(p for p in self.networks.parameters() if p.grad is not None).grad.fill_(torch.nan)
        return update(self)

    if what == "loss":
        monkeypatch.setattr(PatchAdversary, "train_discriminators", spoilt_loss)
    else:
        monkeypatch.setattr(PatchAdversary, "update", spoilt_gradient)
    settings = (*ALL, "callbacks.last.every_n_steps=1", "adversary.start=2")
    with pytest.raises(UserError, match=rf"The discriminators' {what} is not finite at step 2"):
        train_here(tmp_path, cache, *settings)
    checkpoint = read_checkpoint(last(tmp_path))
    assert checkpoint["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in checkpoint["adversary"]["networks"].values())


def test_it_is_said_once_in_a_while_when_it_wins(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = PatchAdversary.prepare

    def winning(self: PatchAdversary, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.streaks = torch.tensor([PATIENCE, 0])

    monkeypatch.setattr(PatchAdversary, "prepare", winning)
    train_here(tmp_path, cache, *ALL, "trainer.max_steps=1")
    assert "warning: The discriminator has been right" in capsys.readouterr().out

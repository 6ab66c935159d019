"""The learning rate of short runs, of long ones beside torch's, and of runs that are made longer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from tae import UserError
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.config import plain
from tae.training.resume import check_resumable


def demo(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=["experiment=demo", "output_dir=x", *overrides])


def built(cfg: DictConfig) -> tuple[Optimizer, LRScheduler]:
    optimizer = instantiate(cfg.optimizer)([torch.nn.Parameter(torch.zeros(1))])
    return optimizer, instantiate(cfg.scheduler)(optimizer)


def learning_rates(optimizer: Optimizer, schedule: LRScheduler, steps: int) -> list[float]:
    """Those that the next steps are taken with."""
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return taken


@pytest.mark.parametrize("steps", [1, 2, 20, 200])
def test_any_number_of_steps_ends_at_the_lowest_and_keeps_the_betas(steps: int) -> None:
    optimizer, schedule = built(demo(f"trainer.max_steps={steps}", "optimizer.lr=1e-3", "+optimizer.betas=[0.5, 0.75]"))
    taken = learning_rates(optimizer, schedule, steps)
    assert max(taken) == pytest.approx(1e-3)
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.5, 0.75)
    if steps > 1:
        assert taken[-1] == pytest.approx(1e-4)
    assert learning_rates(optimizer, schedule, 2)[-1] == pytest.approx(taken[-1]), "beyond its end it stays"


def test_a_run_of_usual_length_has_torchs_curve() -> None:
    ours = learning_rates(*built(demo("trainer.max_steps=200", "optimizer.lr=1e-3")), 200)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = OneCycleLR(optimizer, 1e-3, 200, pct_start=0.05, div_factor=10, final_div_factor=1, cycle_momentum=False)
    assert ours == pytest.approx(learning_rates(optimizer, theirs, 200), rel=1e-9)


def resumed(was: tuple[Optimizer, LRScheduler], cfg: DictConfig) -> tuple[Optimizer, LRScheduler]:
    """As Lightning restores: first the optimizer, then its schedule."""
    optimizer, schedule = built(cfg)
    optimizer.load_state_dict(was[0].state_dict())
    schedule.load_state_dict(was[1].state_dict())
    return optimizer, schedule


@pytest.mark.parametrize("done", [7, 20])
def test_a_longer_run_follows_the_longer_curve_from_its_first_step(
    done: int, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = demo("trainer.max_steps=20"), demo("trainer.max_steps=60")
    stopped = built(short)
    learning_rates(*stopped, done)
    check_resumable({"config": plain(short)}, plain(long), Path("last.ckpt"))
    assert "scheduler.total_steps was 20 and is 60" in capsys.readouterr().out
    rest = learning_rates(*resumed(stopped, long), 60 - done)
    assert rest == learning_rates(*built(long), 60)[done:]


def test_the_same_length_resumes_to_the_bit_and_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    cfg = demo("trainer.max_steps=20")
    stopped = built(cfg)
    learning_rates(*stopped, 7)
    check_resumable({"config": plain(cfg)}, plain(cfg), Path("last.ckpt"))
    assert capsys.readouterr().out == ""
    assert learning_rates(*resumed(stopped, cfg), 13) == learning_rates(*built(cfg), 20)[7:]


def torchs(config: dict[str, Any]) -> None:
    config["scheduler"] |= {"_target_": "torch.optim.lr_scheduler.OneCycleLR"}


def no_schedule(config: dict[str, Any]) -> None:
    config["scheduler"] = None


@pytest.mark.parametrize(
    ("overrides", "change", "told"),
    [
        (["trainer.max_steps=10"], None, "scheduler.total_steps was 20 and is 10"),
        (["trainer.max_steps=40", "scheduler.pct_start=0.5"], None, "scheduler.pct_start was 0.05 and is 0.5"),
        (["trainer.max_steps=40", "optimizer.lr=1"], None, "optimizer.lr was 5e-05 and is 1"),
        (["trainer.max_steps=40"], torchs, "scheduler.total_steps was 20 and is 40"),  # it restores the old length
        (["trainer.max_steps=40"], no_schedule, "scheduler._target_ was 'one_cycle' and is None"),
    ],
)
def test_nothing_else_of_the_schedule_may_change(
    overrides: list[str], change: Callable[[dict[str, Any]], None] | None, told: str
) -> None:
    was, now = plain(demo("trainer.max_steps=20")), plain(demo(*overrides))
    if change is not None:
        change(now)
    if change is torchs:
        change(was)
    with pytest.raises(UserError) as caught:
        check_resumable({"config": was}, now, Path("last.ckpt"))
    assert told in str(caught.value)

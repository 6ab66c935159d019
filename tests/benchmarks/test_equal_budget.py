"""Trainings that are compared: equal in what they should be, read again, and their differences with intervals."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks import equal_budget, trainings
from benchmarks.equal_budget import NETWORKS, budgets, cost_rows, training
from benchmarks.trainings import Training, difference, spread_over_seeds
from tae.runtime.config import plain
from tae.runtime.errors import UserError

OPTIONS = ["--train", "train-*.tar", "--test", "test-*.tar", "--device", "cpu", "--state"]


def options(folder: Path, *more: str) -> argparse.Namespace:
    return trainings.make_parser(None, num_frames=17, batch=2).parse_args([*OPTIONS, str(folder), *more])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_equal_sizes_and_rates(name: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    cfg = training(name, 0).configure(options(tmp_path), steps=1)
    with torch.no_grad():
        model = instantiate(cfg.model)
        assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(4e6, rel=0.09)
        first, second = (model.encode(torch.zeros(1, 3, frames, 64, 64)).mode().numel() for frames in (17, 25))
    assert second - first == 8 * 64 * 64 * 3 / 96, "of each further 8 frames"


def test_networks_are_trained_alike(tmp_path: Path) -> None:
    """Whatever is not the network's, for one of each kind."""
    found = []
    for name in ("full", "haar, 2 levels", "LTX"):
        cfg = OmegaConf.to_container(training(name, 0).configure(options(tmp_path), steps=1))
        folder = cfg["output_dir"]
        del cfg["model"]
        found.append(json.dumps(cfg).replace(folder, ""))
    assert found[0] == found[1] == found[2]


def test_equal_time_is_in_proportion_to_the_time_of_a_step() -> None:
    arguments = argparse.Namespace(networks=["full", "haar, 2 levels"], steps=100, equal=["steps", "time"])
    costs = {"full": {"seconds": 2.0}, "haar, 2 levels": {"seconds": 0.5}, "Wan": {"seconds": 4.0}}
    assert budgets(arguments, costs, "full") == {"steps": 100, "time": 100}
    assert budgets(arguments, costs, "haar, 2 levels") == {"steps": 100, "time": 400}
    assert budgets(arguments, costs, "Wan") == {"steps": 100, "time": 50}
    arguments.equal = ["time"]
    assert budgets(arguments, costs, "Wan") == {"time": 50}


def test_costs_of_another_device_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equal_budget, "interleaved", lambda steps, device, *_: {name: [len(device)] for name in steps})
    monkeypatch.setattr(equal_budget, "Step", lambda cfg, shape: SimpleStep())
    found = []
    for device in ("cpu", "cuda"):
        arguments = options(tmp_path, "--device", device)
        arguments.networks, arguments.warmup, arguments.repeats = ["full"], 0, 1
        found.append(equal_budget.measure_costs(arguments)["full"]["seconds"])
    assert found == [3, 4]


class SimpleStep:
    """Stands for a step of training."""

    model = torch.nn.Linear(1, 1)

    def __call__(self) -> None:
        """Costs nothing."""


def test_the_table_of_costs_compares_with_the_first() -> None:
    cost = {"parameters": 4e6, "GMAC": 1.0}
    rows = cost_rows({"full": cost | {"seconds": 2.0}, "Wan": cost | {"seconds": 8.0}}, ["full", "Wan"])
    assert [row["times faster than full"] for row in rows] == [1, 0.25]


def document(*psnr: float) -> dict:
    return {"per_clip": [{"psnr": str(value)} for value in psnr]}


def test_a_difference_is_of_each_clip_with_itself() -> None:
    """Clips that differ by 20 dB among themselves do not widen it; seeds that disagree do."""
    base = [document(20, 30, 40), document(21, 31, 41)]
    better = [document(20.5, 30.5, 40.5), document(21.5, 31.5, 41.5)]
    assert difference(better, base, "psnr") == "+0.5 (+0.5 to +0.5)"
    divided = [document(21, 31, 41), document(20, 30, 40)]
    mean, low, high = (float(word.strip("()")) for word in difference(divided, base, "psnr").replace("to", "").split())
    assert (mean, low, high) == (0, -1, 1)


def test_seeds_are_summed_up() -> None:
    assert spread_over_seeds([0.5]) == "0.5"
    assert spread_over_seeds([1, 2, 3]) == "2 ± 1"


def test_a_training_that_has_ended_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained once for each number of steps; the curve has each step once, as it was seen last."""
    arguments, run = options(tmp_path), Training("a, b", 3, ())
    trained = []

    def train(cfg: object) -> dict:
        trained.append(cfg.trainer.max_steps)
        (run.folder(arguments)).mkdir(parents=True, exist_ok=True)
        (run.folder(arguments) / "per_clip.csv").write_text("key,psnr\nclip,30.0\n")
        return {"metrics": {"psnr": {"mean": float(cfg.trainer.max_steps)}}, "config": plain(cfg)}

    monkeypatch.setattr(trainings, "train", train)
    for _ in range(2):
        for steps in (5, 9):
            found = run.run(arguments, steps)
            assert found["metrics"]["psnr"]["mean"] == steps
            assert trainings.values_of(found, "psnr") == np.array([30.0])
    assert trained == [5, 9]
    arguments.lr *= 2
    with pytest.raises(UserError, match=r"after_5_steps.json was made with other settings of optimizer"):
        run.run(arguments, 5)
    assert trained == [5, 9]
    for version, text in ((0, "step,val/psnr\n1,20\n2,\n2,21\n"), (1, "step,val/psnr\n2,21.5\n3,22\n")):
        path = run.folder(arguments) / f"csv/version_{version}/metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert run.curve(arguments, "psnr") == [(1, 20.0), (2, 21.5), (3, 22.0)]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.usefixtures("real_weights")
@pytest.mark.timeout(1800)
def test_a_comparison_that_is_repeated_ends_in_the_same_table(
    clips: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks and the linear codec; then again without any training."""
    command = [
        "equal_budget", *clips,
        *("--device", "cpu", "--steps", "2", "--batch", "1", "--looks", "1", "--fit-clips", "4", "--repeats", "1"),
        *("--networks", "haar, 2 levels", "LTX", "--state", str(tmp_path / "state"), "--output", str(tmp_path)),
        *("--plot", str(tmp_path / "plot.png")),
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    equal_budget.main()
    monkeypatch.setattr(trainings, "train", lambda cfg: pytest.fail("trained again"))
    equal_budget.main()
    first, second = (json.loads(path.read_text())["rows"] for path in sorted(tmp_path.glob("*.json")))
    assert first == second
    assert [row["equal"] for row in first].count("time") == 2
    assert {row["network"] for row in first} == {"haar, 2 levels", "LTX", "linear codec"}
    assert all(10 < float(row["dB"]) < 40 for row in first)
    assert (tmp_path / "plot.png").stat().st_size > 10_000

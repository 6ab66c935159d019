"""The small ablation and the outlier penalty: which trainings are compared, and what a generator's error is."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from benchmarks import ablations, outlier_penalty, trainings
from benchmarks.ablation_costs import ARMS
from benchmarks.ablations import BUNDLED, FROM_RANDOM, RANDOM, start_of
from benchmarks.outlier_penalty import NONE, penalty, velocity_error

OPTIONS = ["--train", "train-*.tar", "--test", "test-*.tar", "--device", "cpu", "--steps", "100", "--state"]


def options(folder: Path, **more: Any) -> argparse.Namespace:
    found = trainings.make_parser(None).parse_args([*OPTIONS, str(folder)])
    return argparse.Namespace(**vars(found) | {"lr_random": 1e-3, "photographs": ["images-*.tar"]} | more)


def leaves(node: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {key: node}
    return {name: value for child in node for name, value in leaves(node[child], f"{key}.{child}".lstrip(".")).items()}


def test_an_arm_is_trained_as_its_base_but_for_its_choice(tmp_path: Path) -> None:
    """Of the small trainings as of those at full size; the images and the adversary have sizes of their own."""

    def settings(name: str, start: str) -> dict[str, Any]:
        cfg = ablations.training(name, start, 1, arguments).configure(arguments, 100)
        return leaves(OmegaConf.to_container(cfg, resolve=False))

    arguments = options(tmp_path)
    bases = {start: settings("base", start) for start in (BUNDLED, RANDOM)}
    assert {start: base["init_from"] for start, base in bases.items()} == {BUNDLED: "tiny", RANDOM: None}
    found = {}
    for name, prefix in (
        ("padding_zeros", "model.temporal_padding"),
        ("kl_1e-4", "loss.kl.weight"),
        ("images_1_2", "data.sources"),
        ("patch_adversary", "adversary"),
    ):
        found[name], base = settings(name, start_of(name)), bases[start_of(name)]
        changed = {key for key in found[name].keys() | base.keys() if found[name].get(key) != base.get(key)}
        assert {key for key in changed if not key.startswith(prefix)} == {"output_dir"}
    assert set(FROM_RANDOM) < set(ARMS)
    assert found["images_1_2"]["data.sources.images.shards"] == ["images-*.tar"]
    assert found["patch_adversary"]["adversary.start"] == 50


def test_a_penalty_starts_from_the_base_without_it(tmp_path: Path) -> None:
    arguments = options(tmp_path)
    base = outlier_penalty.base(arguments).configure(arguments, 100)
    plain = outlier_penalty.training(NONE, 0, arguments).configure(arguments, 100)
    strong = outlier_penalty.training(penalty("1.5:5"), 0, arguments).configure(arguments, 100)
    assert (base.loss.opl.weight, plain.loss.opl.weight, strong.loss.opl.weight, strong.loss.opl.r) == (0, 0, 5, 1.5)
    assert base.init_from == "tiny"
    assert plain.init_from == strong.init_from == str(tmp_path / "base_seed0" / "checkpoints" / "last.ckpt")
    assert plain.output_dir != strong.output_dir


class KnowsNothing(nn.Module):
    def forward(self, latents: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(latents)


def test_a_generator_that_knows_nothing_has_an_error_of_two() -> None:
    """The variances of noise and of scaled latents; and the same draws give the same number."""
    torch.manual_seed(1)  # not that of the noise, which would be the latents themselves
    latents = torch.randn(40, 4, 2, 8, 8)
    found = velocity_error(KnowsNothing(), latents)  # type: ignore[arg-type]
    assert found == pytest.approx(
        2.0, abs=0.02
    )  # 20,480 values of each draw: 2 * sqrt(2 / 20,480) = 0.02, over 32 draws
    assert velocity_error(KnowsNothing(), latents) == found  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.usefixtures("real_weights")
@pytest.mark.timeout(1800)
def test_tables_are_made_once_and_read_afterwards(
    clips: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = [
        *clips, "--device", "cpu",
        *("--steps", "2", "--seeds", "0", "--output", str(tmp_path), "--num-frames", "8", "--resolution", "48"),
    ]  # fmt: skip
    arms = ["--arms", "base", "padding_zeros", "kl_1e-4", "--state", str(tmp_path / "ablations")]
    generator = ["--generator-steps", "2", "--generator-clips", "3", "--picture", str(tmp_path / "latents.png")]
    penalties = ["--penalties", "3:5", "0.5:5", "--base-steps", "2", *generator, "--state", str(tmp_path / "penalties")]
    for again in (False, True):
        if again:
            monkeypatch.setattr(trainings, "train", lambda cfg: pytest.fail("trained again"))
        for module, given in ((ablations, arms), (outlier_penalty, penalties)):
            monkeypatch.setattr("sys.argv", [module.__name__, *common, *given])
            module.main()
    for theme, count in (("ablations", 4), ("outlier_penalty", 4)):
        first, second = (json.loads(path.read_text())["rows"] for path in sorted(tmp_path.glob(f"{theme}*.json")))
        assert first == second
        assert len(first) == count
    # No position is beyond 3, so its penalty changes nothing; those beyond 0.5 are there, and it does.
    before, without, idle, strong = first
    assert without["beyond 3"] == idle["beyond 3"] == 0.0
    assert idle["dB, to the base"] == "+0 (+0 to +0)"
    assert idle["velocity error"] == without["velocity error"] != before["velocity error"]
    assert strong["velocity error"] != without["velocity error"]
    assert (tmp_path / "latents.png").stat().st_size > 10_000

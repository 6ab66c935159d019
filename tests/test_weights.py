"""The command `python -m tae.weights`, and that losses and metrics find what it leaves."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from tae.losses import Perceptual, backbones, lpips
from tae.metrics.frame import LPIPS
from tae.metrics.weights import WEIGHTS, choose
from tae.runtime.cli import list_commas
from tae.runtime.errors import UserError
from tae.runtime.weights_store import digest
from tae.weights import main
from tests.fakes.warm import run_warm

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAE_WEIGHTS", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*overrides: str) -> dict[str, Path]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return main(compose("weights", overrides=list(overrides)))


def test_every_weight_file_is_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == {}
    listed = capsys.readouterr().out
    for weight in WEIGHTS.values():
        for said in (weight.name, weight.package, weight.version, weight.member_sha256, weight.licence, "not here"):
            assert said in listed
    assert listed.count("sha256") == len(WEIGHTS) == 4
    assert str(cache) in listed


def test_the_pinned_hashes_are_hashes() -> None:
    for weight in WEIGHTS.values():
        for value in (weight.package_sha256, weight.member_sha256, weight.tensors_sha256):
            assert len(bytes.fromhex(value)) == 32


@pytest.mark.parametrize(
    ("names", "chosen"),
    [(None, []), ("vgg", ["vgg"]), (["i3d", "vgg", "i3d"], ["i3d", "vgg"]), ("all", ["vgg", "alex", "dists", "i3d"])],
)
def test_names_are_chosen(names: Any, chosen: list[str]) -> None:
    assert [weight.name for weight in choose(names)] == chosen


def test_commas_make_one_list_and_not_several_runs() -> None:
    given = ["tae.weights", "get=vgg,alex", "source=a,b"]
    assert list_commas(given, ("get",)) == ["tae.weights", "get=[vgg,alex]", "source=a,b"]
    assert list_commas(["get=[vgg,alex]", "get=all"], ("get",)) == ["get=[vgg,alex]", "get=all"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["get=resnet"], "vgg, alex, dists, i3d, all"),
        (["source=FILE"], "needs get="),
        (["get=vgg", "source=FILE"], "FILE"),
    ],
)
def test_mistakes_are_said(overrides: list[str], message: str, cache: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_the_command_line(tmp_path: Path, cache: Path) -> None:
    """Through Hydra: commas are a list, and a mistake is one line without a traceback."""
    done = run_warm(["-m", "tae.weights", "get=vgg,alex", f"source={tmp_path}/none"])
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()
    assert said[-1].startswith("error: source=")
    assert len(said) == 2


@pytest.fixture
def cached_vgg(cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Random weights in the place of the cached ones."""
    state = {name: torch.randn(shape) * 0.05 for name, shape in backbones.VGG.shapes().items()}
    known = dataclasses.replace(backbones.VGG, tensors_sha256=digest(state))
    monkeypatch.setitem(backbones.BY_NET, "vgg", known)
    cache.mkdir()
    save_file(state, known.path)
    return state


def test_the_loss_and_the_metric_find_cached_weights(
    cached_vgg: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torchvision's cache, and after a file that is given."""
    monkeypatch.setattr(lpips, "torchvision_file", lambda net: tmp_path / "torchvision.pth")
    torch.save({name: torch.zeros_like(tensor) for name, tensor in cached_vgg.items()}, tmp_path / "torchvision.pth")
    torch.save({name: tensor.flip(0) for name, tensor in cached_vgg.items()}, tmp_path / "given.pth")
    network = Perceptual(weight=1.0, net="vgg", weights_path=None)._network
    assert network is not None
    assert torch.equal(network.net.slice1[0].weight, cached_vgg["features.0.weight"])
    metric = LPIPS().network()
    assert torch.equal(metric._network.net.slice1[0].weight, cached_vgg["features.0.weight"])  # type: ignore[union-attr]
    given = Perceptual(weight=1.0, net="vgg", weights_path=str(tmp_path / "given.pth"))._network
    assert given is not None
    assert torch.equal(given.net.slice1[0].weight, cached_vgg["features.0.weight"].flip(0))
    backbones.BY_NET["vgg"].path.unlink()
    last = Perceptual(weight=1.0, net="vgg", weights_path=None)._network
    assert last is not None
    assert last.net.slice1[0].weight.abs().sum() == 0


def test_a_damaged_cache_is_not_passed_over(cached_vgg: dict[str, torch.Tensor]) -> None:
    path = backbones.BY_NET["vgg"].path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="get=vgg"):
        Perceptual(weight=1.0, net="vgg", weights_path=None)

"""A training with a moving average: what is validated, saved, evaluated, resumed, and what is left after a failure."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from reliability.tiny_run import train_here

from tae import UserError
from tae.evaluation.run import evaluate
from tae.model.checkpoint_file import read_checkpoint
from tae.model.pretrained import LoadedModel, load_model
from tae.runtime.cli import CONFIG_FOLDER
from tae.training.config_checks import check_training
from tae.training.ema import MovingAverage
from tae.training.module import AutoencoderModule

RUN = ("ema.decay=0.6", "data.num_clips.train=3", "trainer.max_steps=4", "trainer.val_check_interval=2")
ALL = (*RUN, "callbacks.videos.num_clips=0", "page.clips=0")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The weights that training has after each step, as the optimizer left them."""
    steps: list[dict[str, torch.Tensor]] = []
    update = MovingAverage.on_train_batch_end

    def noting(self: MovingAverage, trainer: Any, module: AutoencoderModule, *args: Any) -> None:
        if not module.between_steps:
            steps.append({name: p.detach().clone() for name, p in module.model.named_parameters()})
        update(self, trainer, module, *args)

    monkeypatch.setattr(MovingAverage, "on_train_batch_end", noting)
    return steps


def written_out(start: dict[str, torch.Tensor], steps: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The average by its definition, in float64."""
    average = {name: value.double() for name, value in start.items()}
    for n, weights in enumerate(steps, start=1):
        d = min(0.6, (1 + n) / (10 + n))
        average = {name: d * value + (1 - d) * weights[name].double() for name, value in average.items()}
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_validated_saved_and_evaluated(
    accumulate: int, cache: Path, tmp_path: Path, history: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, torch.Tensor]] = []
    start: dict[str, torch.Tensor] = {}
    step, begin = AutoencoderModule.validation_step, MovingAverage.on_fit_start

    def noting(self: AutoencoderModule, *args: Any) -> None:
        validated.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        step(self, *args)

    def beginning(self: MovingAverage, trainer: Any, module: AutoencoderModule) -> None:
        start.update({name: p.detach().clone() for name, p in module.model.named_parameters()})
        begin(self, trainer, module)

    monkeypatch.setattr(AutoencoderModule, "validation_step", noting)
    monkeypatch.setattr(MovingAverage, "on_fit_start", beginning)
    document = train_here(tmp_path, cache, *ALL, f"trainer.accumulate_grad_batches={accumulate}")
    assert len(history) == 4
    expected = written_out(start, history)
    last = tmp_path / "checkpoints" / "last.ckpt"
    average, raw = (load_model(last, kind).model.state_dict() for kind in (None, "raw"))
    for name in expected:
        # Four roundings of weights below 2; the weights themselves are 1e-3 a step away.
        torch.testing.assert_close(average[name].double(), expected[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(validated[-1][name], average[name], rtol=0, atol=0)
        torch.testing.assert_close(raw[name], history[-1][name], rtol=0, atol=0)
    assert any(not torch.equal(average[name], raw[name]) for name in raw)
    assert document["checkpoint"]["weights"] == "ema"
    assert json.loads((tmp_path / "metrics.json").read_text())["checkpoint"]["weights"] == "ema"


def test_evaluation_measures_the_weights_that_are_asked_for(cache: Path, tmp_path: Path) -> None:
    train_here(tmp_path / "run", cache, *ALL, "optimizer.lr=3e-2")
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    found = {}
    for weights in ("null", "ema", "raw"):
        overrides = [f"ckpt={ckpt}", f"weights={weights}", f"output_dir={tmp_path / weights}", "page.clips=0"]
        with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            cfg = compose("evaluate", overrides=[*overrides, "trainer.accelerator=cpu"])
        document = evaluate(cfg)
        found[weights] = (document["checkpoint"]["weights"], document["metrics"]["psnr"]["mean"])
    assert found["null"] == found["ema"]
    assert {kind for kind, _ in found.values()} == {"ema", "raw"}
    assert found["raw"][1] != found["ema"][1]


def test_a_run_without_an_average_has_the_raw_weights_only(cache: Path, tmp_path: Path) -> None:
    train_here(tmp_path, cache, *ALL, "ema.decay=null", "trainer.max_steps=1")
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert "raw_weights" not in read_checkpoint(last)
    assert load_model(last).weights == load_model(last, "raw").weights == "raw"
    with pytest.raises(UserError, match=r"no moving average.*give weights=raw"):
        load_model(last, "ema")
    with pytest.raises(UserError, match=r"weights=ema chooses among .* and tiny is none"):
        load_model("tiny", "ema")


def test_a_checkpoint_of_a_validation_is_that_of_its_step(
    cache: Path, tmp_path: Path, history: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's requeue saves in the middle of one, while the model has the average in the weights' place."""
    step = AutoencoderModule.validation_step

    def saving(self: AutoencoderModule, *args: Any) -> None:
        step(self, *args)
        self.trainer.save_checkpoint(tmp_path / "during.ckpt")

    monkeypatch.setattr(AutoencoderModule, "validation_step", saving)
    train_here(tmp_path / "run", cache, *ALL)
    during, last = (read_checkpoint(p) for p in (tmp_path / "during.ckpt", tmp_path / "run/checkpoints/last.ckpt"))
    for part in ("state_dict", "raw_weights"):
        assert all(torch.equal(during[part][name], last[part][name]) for name in last[part]), part
    assert all(torch.equal(during["raw_weights"][name], weights) for name, weights in history[-1].items())


def test_after_a_failed_validation_the_model_has_its_own_weights(
    cache: Path, tmp_path: Path, history: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[AutoencoderModule] = []

    def failing(self: AutoencoderModule, *args: Any) -> None:
        modules.append(self)
        raise RuntimeError("in the validation")

    monkeypatch.setattr(AutoencoderModule, "validation_step", failing)
    with pytest.raises(RuntimeError, match="in the validation"):
        train_here(tmp_path, cache, *ALL)
    for name, weights in modules[0].model.named_parameters():
        assert torch.equal(weights, history[-1][name]), name


def test_without_checkpoints_the_average_is_evaluated(
    cache: Path, tmp_path: Path, history: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[LoadedModel] = []
    monkeypatch.setattr(
        "tae.training.run.measure", lambda loaded, *args, **kwargs: measured.append(loaded) or {"metrics": {}}
    )
    train_here(tmp_path, cache, *ALL, "~callbacks.best", "~callbacks.last")
    assert measured[0].weights == "ema"
    weights = measured[0].model.state_dict()
    assert any(not torch.equal(weights[name], history[-1][name]) for name in weights)


def test_a_run_is_not_resumed_with_another_average(cache: Path, tmp_path: Path) -> None:
    train_here(tmp_path, cache, *ALL, "trainer.max_steps=1")
    with pytest.raises(UserError, match=r"ema\.decay was 0\.6 and is None"):
        train_here(tmp_path, cache, *ALL, "ema.decay=null")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["ema.decay=1"], r"ema\.decay=1 is not allowed"), (["ema.decay=0.9", "trainer.strategy=fsdp"], "divides them")],
)
def test_averages_that_cannot_be(overrides: list[str], message: str) -> None:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose(
            "train", overrides=["experiment=demo", *overrides, "output_dir=x", "trainer.gradient_clip_val=null"]
        )
    with pytest.raises(UserError, match=message):
        check_training(cfg)

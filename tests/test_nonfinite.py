"""A value that is not finite stops a run, says where it was met, and reaches no checkpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tae import TemporalAutoencoder, UserError
from tae.model.pretrained import load_model
from tests.test_training import ROOT, SMALL, run


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


def assert_finite(output: Path) -> None:
    for saved in (output / "checkpoints").glob("*.ckpt"):
        assert all(tensor.isfinite().all() for tensor in load_model(saved).model.state_dict().values()), saved


@pytest.mark.parametrize(
    "when",
    [
        "trainer.max_steps=5",  # seen in the next step
        "trainer.max_steps=3",  # there is none: seen when the last checkpoint is to be saved
        "callbacks.last.every_n_steps=1",
        "trainer.val_check_interval=3",
        "trainer.accumulate_grad_batches=2",
        "precision=bf16",
    ],
)
def test_nothing_is_saved_of_a_loss_that_is_not_finite(
    when: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def third_is_nan(self: Any, context: Any) -> torch.Tensor:
        calls.append(1)
        return context.output.reconstruction.mean() * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr("tae.losses.Reconstruction.__call__", third_is_nan)
    with pytest.raises(UserError, match=f"not finite at step {1 if 'accumulate' in when else 2}"):
        run(tmp_path, cache, "trainer.max_steps=5", "callbacks.last.every_n_steps=2", when)
    assert len(calls) <= 4
    assert_finite(tmp_path)
    evidence = json.loads((tmp_path / "nonfinite_rank0.json").read_text())
    assert len(evidence["keys"]) == 1
    assert evidence["terms"]["reconstruction"] == "nan"


@pytest.mark.parametrize(
    "when",
    [
        "trainer.max_steps=5",
        "trainer.max_steps=3",
        "callbacks.last.every_n_steps=1",
        "trainer.gradient_clip_val=null",
        "+trainer.gradient_clip_algorithm=value",
    ],
)
def test_nothing_is_saved_of_a_gradient_that_is_not_finite(
    when: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a square root at 0 gives it: the loss is finite."""
    calls: list[int] = []

    def third_has_no_gradient(self: Any, context: Any) -> torch.Tensor:
        calls.append(1)
        value = context.output.reconstruction.mean()
        return value + (value * 0).abs().sqrt() if len(calls) == 3 else value

    monkeypatch.setattr("tae.losses.Reconstruction.__call__", third_has_no_gradient)
    with pytest.raises(UserError, match="gradient is not finite at step 2"):
        run(tmp_path, cache, "trainer.max_steps=5", "callbacks.last.every_n_steps=2", when)
    assert len(calls) <= 4
    assert_finite(tmp_path)
    assert json.loads((tmp_path / "nonfinite_rank0.json").read_text())["terms"]["reconstruction"] != "nan"


@pytest.mark.parametrize("first", ["validate_first=true", "validate_first=false"])
def test_a_validation_refuses_a_reconstruction_that_is_not_finite(
    first: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN is black as uint8: a validation had a figure for it, and best.ckpt was chosen by it."""
    decode = TemporalAutoencoder.decode

    def broken_where_it_is_measured(self: TemporalAutoencoder, *args: Any, **kwargs: Any) -> torch.Tensor:
        return decode(self, *args, **kwargs) * (1 if self.training else torch.nan)

    monkeypatch.setattr(TemporalAutoencoder, "decode", broken_where_it_is_measured)
    step = 0 if first == "validate_first=true" else 1
    with pytest.raises(UserError, match=rf"validation clip synthetic_val_0000\d is not finite at step {step}"):
        run(tmp_path, cache, "trainer.max_steps=3", "trainer.val_check_interval=1", first)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()


BAD_LOSS_IN_ONE_PROCESS = """
import sys
sys.path.insert(0, {root!r})
import torch
from hydra import compose, initialize_config_dir
from tae.losses import Reconstruction
from train import train

calls = []

def third_is_nan_in_the_second_process(self, context):
    calls.append(1)
    return context.output.reconstruction.mean() * (torch.nan if torch.distributed.get_rank() == 1 and len(calls) == 3 else 1)

Reconstruction.__call__ = third_is_nan_in_the_second_process
with initialize_config_dir({root!r} + "/conf", version_base="1.3"):
    cfg = compose("train", overrides={overrides!r})
train(cfg)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["callbacks.last.every_n_steps=1", "trainer.val_check_interval=3"])
def test_nothing_is_saved_of_another_process_loss_that_is_not_finite(when: str, cache: Path, tmp_path: Path) -> None:
    """The gradient is the mean over both processes, and is looked at without clipping too."""
    overrides = [*SMALL, f"data.cache_dir={cache}", f"output_dir={tmp_path / 'run'}", "trainer.max_steps=5", when]
    overrides += ["trainer.devices=2", "strategy=ddp", "trainer.gradient_clip_val=null", "validate_first=false"]
    script = tmp_path / "run.py"
    script.write_text(BAD_LOSS_IN_ONE_PROCESS.format(root=str(ROOT), overrides=overrides))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert "The gradient is not finite at step 2" in done.stderr, done.stderr[-3000:]
    assert "Another process' loss may have caused it" in done.stderr, done.stderr[-3000:]
    assert "The loss is not finite at step 2" in done.stderr, done.stderr[-3000:]
    assert_finite(tmp_path / "run")
    evidence = sorted(path.name for path in (tmp_path / "run").glob("nonfinite*"))
    assert evidence == ["nonfinite_rank0.json", "nonfinite_rank1.json"]

"""Which settings of a checkpoint a resumed run is told about."""

from pathlib import Path

import pytest

from tae.training.resume import check_resumable


def test_a_checkpoint_of_version_0_1_resumes_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """The class of its objective has another name now, and computes the same."""
    was = {"loss": {"_target_": "tae.losses.AutoencoderLoss", "kl": {"_target_": "tae.losses.KL", "weight": 1e-6}}}
    now = {"loss": {**was["loss"], "_target_": "tae.losses.Objective"}}
    check_resumable({"config": was}, now, Path("last.ckpt"))
    assert capsys.readouterr().out == ""
    now["loss"]["kl"] = {"_target_": "tae.losses.KL", "weight": 1e-5}
    check_resumable({"config": was}, now, Path("last.ckpt"))
    assert "loss.kl.weight was 1e-06 and is 1e-05" in capsys.readouterr().out

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import training
from benchmarks.loader import prepare_shards
from data.drawing import draw_clip, encode_mp4


def test_a_run_that_leaves_the_first_one_is_refused() -> None:
    found = [{"naive": 1.0, "shipped": 1.0 + (5e-4 if step % 2 else -5e-4)} for step in range(20)]
    rows = training.summarise(found)
    assert [row["step"] for row in rows] == [*map(str, range(2, 21, 2)), "mean"]
    assert rows[3]["shipped, rel. difference"] == pytest.approx(5e-4)
    assert rows[-1]["shipped, rel. difference"] == pytest.approx(0, abs=1e-12)
    training.check(rows, "fp32")
    with pytest.raises(SystemExit, match=r"shipped, rel\. difference: 0\.2 in row 8"):
        training.check(training.summarise([*found[:6], {"naive": 1.0, "shipped": 1.2}, *found[7:]]), "fp32")
    with pytest.raises(SystemExit, match=r"0\.0005 in row mean"):
        training.check(training.summarise([{"naive": 1.0, "shipped": 1.0005}] * 20), "fp32")
    with pytest.raises(SystemExit, match="nan"):
        training.check(training.summarise([{"naive": 1.0, "shipped": float("nan")}] * 20), "fp32")


def test_variants_are_trained_on_the_same_clips(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(encode_mp4(draw_clip(rng, 12, 32, 40)))
    shards = [prepare_shards([tmp_path / "videos"], tmp_path)]
    arguments = argparse.Namespace(
        shards=shards, device="cpu", dtype="fp32", model="tiny", lpips=False, lr=1e-4,
        variants=["naive", "shipped"], num_frames=4, resolution=16, batch=1, steps=3, output=tmp_path,
    )  # fmt: skip
    steps = training.make_steps(arguments)
    found = training.train(steps, arguments)
    assert len({losses["naive"] for losses in found}) == 3
    for losses in found:
        assert losses["shipped"] == pytest.approx(losses["naive"], rel=1e-3)
    before, after = training.make_steps(arguments)["shipped"].model, steps["shipped"].model
    assert not all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))

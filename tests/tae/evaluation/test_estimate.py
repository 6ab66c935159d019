"""The estimate of an evaluation's duration: proportional to clips and frames, without what cannot be measured."""

import time

import pytest
import torch

from tae.evaluation.estimate import duration, in_words, seconds_for
from tae.metrics.distribution import RFVD
from tae.metrics.metric import Metric, NotMeasured


def test_seconds_grow_with_clips_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))  # every measurement takes one second

    def by_frame(original: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        assert original.shape == (2, 16, 24, 3)
        return original.float().mean(dim=(1, 2, 3))

    def by_clip(original: torch.Tensor, reconstruction: torch.Tensor) -> float:
        assert original.shape == (8, 16, 24, 3)
        return 1.0

    def not_here(original: torch.Tensor, reconstruction: torch.Tensor) -> float:
        raise NotMeasured("no weights")

    metrics = {
        "dists": Metric(label="a", function=by_frame),
        "warp": Metric(label="b", scope="clip", function=by_clip),
        "vmaf": Metric(label="c", scope="clip", function=not_here),
        "psnr": Metric(label="d", function=not_here),
    }
    # Model and baseline together, two frames of eight where a metric is of frames.
    assert seconds_for(metrics, 10, (8, 16, 24), torch.device("cpu")) == {"dists": 40.0, "warp": 10.0}


def test_what_will_not_be_measured_takes_no_time() -> None:
    frames = torch.zeros(1, 16, 8, 8, 3, dtype=torch.uint8)
    network = RFVD()
    network.features = lambda frames: pytest.fail("I3D ran")  # type: ignore[method-assign]
    metrics = {"rfvd": Metric(label="rFVD", scope="set", function=network)}
    assert seconds_for(metrics, 100, tuple(frames.shape[1:4]), torch.device("cpu"), in_all=200) == {}


def test_the_line_names_the_longest_first() -> None:
    said = in_words({"warp": 90.0, "dists": 600.0}, 60)
    assert said == "these metrics will take about 12 min for 60 clips (dists 10 min, warp 90 s)"
    assert duration(3 * 3600) == "3.0 h"

"""A model that has no latents to look at is measured like any other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tae.evaluation.page import details, evaluation_page, write_clips
from tae.evaluation.report import write_report
from tae.evaluation.results import ClipFrames, ClipResult, EvaluationResult
from tae.evaluation.run import describe
from tae.evaluation.sweep import write_comparison
from tae.evaluation.sweep_page import comparison_page
from tae.evaluation.sweep_runs import read_runs

OTHER: Any = SimpleNamespace(name="Theirs", time_factor=4, space_factor=8, about_input=lambda *size: "takes any size")


def clip(latents: torch.Tensor | None) -> ClipFrames:
    frames = torch.zeros(8, 16, 16, 3, dtype=torch.uint8)
    return ClipFrames("a", 25.0, frames, frames + 8, latents)


def test_latents_are_described_by_shape_and_saving() -> None:
    about = describe(OTHER, clip(torch.zeros(4, 2, 2, 2)))
    assert about["latents"] == [4, 2, 2, 2]
    assert about["compression"] == 8 * 16 * 16 * 3 / 32


@pytest.mark.parametrize("latents", [None, torch.zeros(4, 2, 2, 2)])
def test_report_page_and_sweep_say_nothing_of_latents_that_are_not_there(
    tmp_path: Path, latents: torch.Tensor | None
) -> None:
    shown, run = clip(latents), tmp_path / "0"
    values = {"psnr": 20.0, "ssim": 0.8}
    result = EvaluationResult([ClipResult("a", 8, 25.0, values, values)])
    document = write_report(
        run, result, [], checkpoint=None, config={}, skipped=[], model=describe(OTHER, shown), training={"steps": 1}
    )
    page = evaluation_page(document, result, write_clips(run, {"best": shown}, 4, 8))
    (run / "run.json").write_text(json.dumps({"job": 0, "overrides": {}, "error": None}))
    runs = read_runs(tmp_path)
    write_comparison(tmp_path)
    told = latents is not None
    assert ("latents" in document["model"]) is ("compression" in document["model"]) is told
    assert ("latents" in (run / "report.md").read_text()) is told
    assert ("latents" in dict(details(document))) is told
    assert [value is not None for value in page["clips"][0]["latents"]] == [told]
    assert (comparison_page(tmp_path, runs)["runs"][0]["note"] is not None) is told

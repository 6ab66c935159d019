"""Protocol ucf101-17: what its config fixes, and that a measurement which is not it says so beside the published rows."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tae.evaluation.published import PUBLISHED_TABLES
from tae.evaluation.run import build_metrics, samples_posterior
from tae.runtime.cli import CONFIG_FOLDER

TABLE = PUBLISHED_TABLES["ucf101-17"]


def composed(*overrides: str) -> Any:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("evaluate", overrides=["protocol=ucf101-17", *overrides])


@pytest.mark.parametrize("data", [[], ["data=ucf101"]])
def test_the_choice_fixes_what_the_table_does(data: list[str]) -> None:
    cfg = composed(*data)
    assert {name: cfg.data[name] for name in TABLE.data} == TABLE.data
    assert samples_posterior(cfg)
    metrics = build_metrics(cfg)
    assert TABLE.metric in metrics
    assert "lpips_alex_spatial" in metrics
    assert composed("data.num_frames=9").data.num_frames == 9, "the command line wins, and the report says so"


def document(**changes: Any) -> dict[str, Any]:
    data = {**TABLE.data, "split": "test of ucf101 (split official1, test 0.2)", "posterior": "sampled"}
    values = {"data": data | changes.pop("data", {}), "num_clips": 3783, "metrics": {"psnr_float": {"mean": 34.567}}}
    return values | changes


def test_a_row_stands_beside_the_published_ones() -> None:
    said = TABLE.beside(document())
    assert "34.57 dB" in said
    assert "HunyuanVideo 36.48, CogVideoX 36.23, Video DC-AE 34.94, LTX 32.40" in said
    assert "compare" not in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"num_frames": 16}}, "num_frames is 16, there 17"),
        ({"data": {"eval_window": "central"}}, "eval_window is central, there first"),
        ({"data": {"interpolation": "bicubic"}}, "interpolation is bicubic"),
        ({"data": {"resolution": 128}}, "resolution is 128"),
        ({"data": {"split": "test of ucf101 (split group)"}}, "split group"),
        ({"data": {"posterior": "mode"}}, "mode is decoded"),
        ({"num_clips": 14}, "14 clips, there 3,783"),
    ],
)
def test_what_is_not_the_protocol_is_said(changes: dict[str, Any], told: str) -> None:
    said = TABLE.beside(document(**changes))
    assert told in said
    assert "do not compare" in said
    assert len(TABLE.departures(document(**changes))) == 1

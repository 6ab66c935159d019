"""Data settings of an evaluation: the checkpoint's, and over them the command line's."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from tae.evaluation.stored_config import evaluation_data
from tae.runtime.cli import CONFIG_FOLDER


@pytest.mark.parametrize(
    ("stored", "given", "expected"),
    [
        ({"frame_stride": 1, "fps": [24, 12]}, "data.frame_stride=2", (2, None)),
        ({"frame_stride": 2}, "data.fps=12", (1, 12)),
        ({"frame_stride": 1, "fps": [24, 12]}, "data.resolution=32", (1, [24, 12])),
    ],
)
def test_a_stride_takes_the_place_of_a_rate_and_a_rate_that_of_a_stride(
    stored: dict[str, Any], given: str, expected: tuple[Any, Any]
) -> None:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("evaluate", overrides=["ckpt=x.ckpt", "output_dir=out", given])
    data = evaluation_data(cfg, {"data": {"_target_": "data.datamodule.ClipDataModule", "cache_dir": None} | stored})
    assert (data["frame_stride"], data["fps"]) == expected

"""What several benchmarks are run on."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from data.synthetic.datamodule import write_synthetic
from tae.runtime.cli import CONFIG_FOLDER


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    """--train and --test of generated clips of 20 frames of 64 pixels."""
    folder = tmp_path / "clips"
    settings = [f"output={folder}", "num_clips={train: 6, val: 0, test: 4}", "clip_frames=20", "clip_size=64"]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        write_synthetic(compose("synthetic", overrides=settings))
    return ["--train", str(folder / "train" / "*.tar"), "--test", str(folder / "test" / "*.tar")]

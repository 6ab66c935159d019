"""What all kinds of storage should give."""

from pathlib import Path
from typing import Any

import pytest

from data.datamodule import ClipDataModule


@pytest.fixture(scope="session")
def expected(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three epochs of clips as local shards give them."""
    arguments: dict[str, Any] = {"num_frames": 16, "frame_stride": 1, "resolution": 16, "batch_size": 1}
    arguments |= {"num_workers": 0, "short_clip": "skip", "max_skipped": 0.01, "shuffle_buffer": 4, "seed": 0}
    arguments |= {"output_dir": tmp_path_factory.mktemp("output")}
    loader = ClipDataModule({"train": str(shards / "shard-*.tar")}, **arguments).train_dataloader()
    return [key for batch in (*loader, *loader, *loader) for key in batch["keys"]]

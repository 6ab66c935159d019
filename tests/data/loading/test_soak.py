"""Memory over a long run.

python -m pytest -s -m slow tests/data/loading/test_soak.py    20,000 clips; figures are printed
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from data.datamodule import ClipDataModule
from data.drawing import draw_clip, encode_mp4

CLIPS, WARM_UP, TOLERANCE = 20_000, 1_000, 0.05


def resident() -> int:
    """Bytes of this process and its worker processes; the fork server itself decodes nothing."""
    return sum(
        process.memory_info().rss
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        if process.pid == os.getpid() or process.name().startswith("pt_data_worker")
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_many_clips(
    make_module: Callable[..., ClipDataModule], write_shard: Callable[..., None], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    videos = {f"clip{number}": (encode_mp4(draw_clip(rng, 10, 48, 60)), 10) for number in range(200)}
    write_shard(tmp_path / "s", videos | {f"broken{number}": (b"nothing", 10) for number in range(2)})
    pattern = str(tmp_path / "s" / "shard-*.tar")
    module = make_module(
        shards={"train": pattern},
        num_workers=2,
        batch_size=4,
        num_frames=8,
        resolution=48,
        shuffle_buffer=32,
        max_skipped=0.1,
    )
    loader = module.train_dataloader()
    streamed, measured = 0, []
    while streamed < CLIPS:
        for batch in loader:
            before, streamed = streamed, streamed + len(batch["keys"])
            if streamed // 1000 > before // 1000:
                measured.append((streamed, resident() / 1e6))
    reference = next(size for clips, size in measured if clips >= WARM_UP)
    for clips, size in measured:
        print(f"{clips:6d} clips: {size:7.1f} MB ({size / reference - 1:+.1%})")
    assert all(abs(size / reference - 1) <= TOLERANCE for clips, size in measured if clips > WARM_UP)
    assert loader._worker_deaths == 0

"""What a run needs of its machine is said before it starts."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.datamodule import ClipDataModule
from data.decode import read_frames
from data.loading.mixture import MixedLoader
from data.loading.samples import read_samples
from data.sampling.transforms import Crop
from tae.runtime.errors import UserError

BATCH = 2 * 16 * 16 * 16 * 3  # bytes: 2 clips of 16 frames of 16x16


@pytest.mark.parametrize(("stage", "splits"), [("fit", 2), ("test", 1)])
@pytest.mark.parametrize("processes", [1, 4])
def test_shared_memory_of_all_loaders_is_added_up(
    stage: str,
    splits: int,
    processes: int,
    make_module: Callable[..., ClipDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Docker's 64 MB the training workers left too little for those of the first validation: SIGBUS inside training."""
    needed = 3 * 2 * splits * processes * BATCH  # batches of a worker, workers, loaders, processes
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(os, "statvfs", lambda _, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
        module = make_module(num_workers=2)
        module.trainer = SimpleNamespace(num_devices=processes)  # type: ignore[assignment]
        if enough:
            module.setup(stage)
        else:
            with pytest.raises(UserError, match=r"need \d+ MB of shared memory.*--shm-size"):
                module.setup(stage)


def test_a_negative_seed_is_refused(make_module: Callable[..., ClipDataModule]) -> None:
    """NumPy's generators take none, and would say so only when the first batch is drawn."""
    with pytest.raises(UserError, match=r"seed.*-1"):
        make_module(seed=-1)


def frames_of(module: ClipDataModule, key: str) -> list[np.ndarray]:
    """All frames of a clip, as the stream scales and crops them for evaluation."""
    clip = next(clip for clip in module.clips["val"] if clip.key == key)
    (sample,) = read_samples([clip])
    crop = Crop(32, 42, 16)
    return [crop(image) for image in read_frames(sample.video, range(clip.frames))]


@pytest.mark.parametrize(
    ("settings", "taken", "fps"),
    [
        ({"fps": 12, "num_frames": 8}, range(2, 18, 2), 12.0),  # of 20 frames at 24 a second
        ({"fps": [8, 12], "num_frames": 4}, range(5, 16, 3), 8.0),
        ({"frame_stride": [3, 1], "num_frames": 4}, range(5, 16, 3), 8.0),
        ({"fps": 16, "num_frames": 4}, [7, 8, 10, 11], 16.0),  # at 0, 1.5, 3 and 4.5: ties to the earlier
    ],
)
def test_an_evaluation_takes_the_first_rate_or_stride(
    settings: dict[str, Any], taken: Sequence[int], fps: float, make_module: Callable[..., ClipDataModule]
) -> None:
    module = make_module(batch_size=1, **settings)
    module.setup("fit")
    batch = next(batch for batch in module.val_dataloader() if batch["keys"] == ["clip0_0"])  # type: ignore[union-attr]
    every = frames_of(module, "clip0_0")
    np.testing.assert_array_equal(batch["frames"][0], np.stack([every[number] for number in taken]))
    assert batch["fps"] == [fps]
    described = module.describe("val")
    assert (described["frame_stride"], described.get("fps")) == ((1, fps) if "fps" in settings else (3, None))


def test_training_draws_rates_by_seed_epoch_and_clip(make_module: Callable[..., ClipDataModule]) -> None:
    def drawn(**settings: Any) -> list[float]:
        module = make_module(fps=[24, 12, 8], num_frames=4, batch_size=4, **settings)
        loader = module.train_dataloader()
        return [fps for _ in range(3) for batch in loader for fps in batch["fps"]]

    first = drawn()
    assert set(first) == {24.0, 12.0, 8.0}
    assert first == drawn()
    assert first != drawn(seed=1)


def test_clips_that_do_not_fit_are_counted_or_refused(
    make_module: Callable[..., ClipDataModule], caplog: pytest.LogCaptureFixture
) -> None:
    """13 clips at 24 frames a second, of which one has 9 frames, nine have 20 and three have 24."""
    caplog.set_level("INFO")
    assert len(make_module(fps=[24, 12], num_frames=12).train_dataloader().clips) == 12  # type: ignore[union-attr]
    assert "train: 1 of 13 clips are too short at data.fps=24, 12 and are left out." in caplog.text
    with pytest.raises(UserError, match=r"all of 13 clips are slower than data\.fps=30"):
        make_module(fps=30).train_dataloader()
    with pytest.raises(UserError, match=r"no clip is long enough for data\.num_frames=16 at data\.fps=12"):
        make_module(fps=12).train_dataloader()
    buckets: dict[str, Any] = {"short": {"num_frames": 16}, "long": {"num_frames": 24}}
    caplog.clear()
    mixed = make_module(buckets=buckets).train_dataloader()
    assert isinstance(mixed, MixedLoader)
    assert {name: len(loader.clips) for name, loader in mixed.loaders.items()} == {"short": 9, "long": 3}
    assert mixed.weights == pytest.approx({"short": 0.75, "long": 0.25})
    assert "train/short: 1 of 13 clips are too short or too slow for all buckets and are left out." in caplog.text
    with pytest.raises(UserError, match=r"data\.buckets\.huge: none of 13 clips fits best into 2 x 16x16x99"):
        make_module(buckets=buckets | {"huge": {"num_frames": 99}}).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fps": 12}, "data.fps needs the fps of each clip, which"),
        ({"buckets": {"a": {"height": 32}, "b": {}}}, "data.buckets needs the width of each clip, which"),
    ],
)
def test_an_index_without_rates_or_sizes_is_refused(
    settings: dict[str, Any], said: str, shards: Path, tmp_path: Path, make_module: Callable[..., ClipDataModule]
) -> None:
    """One of version 1, as the first release wrote it."""
    index = json.loads((shards / "index.json").read_text())
    kept = ("name", "samples", "bytes", "sha256", "frames")
    old = index | {"shards": [{name: shard[name] for name in kept} for shard in index["shards"]]}
    (tmp_path / "index.json").write_text(json.dumps(old))
    for shard in shards.glob("*.tar"):
        (tmp_path / shard.name).symlink_to(shard)
    with pytest.raises(UserError) as refused:
        make_module(shards={"train": str(tmp_path / "*.tar")}, **settings).train_dataloader()
    assert said in str(refused.value)
    assert len(make_module(shards={"train": str(tmp_path / "*.tar")}).train_dataloader()) == 6
    lengths: dict[str, Any] = {"a": {"num_frames": 16}, "b": {"num_frames": 24}}  # of one size: frames decide
    assert len(make_module(shards={"train": str(tmp_path / "*.tar")}, buckets=lengths).train_dataloader()) == 4 + 1

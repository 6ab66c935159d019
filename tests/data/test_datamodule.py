"""What a run needs of its machine is said before it starts."""

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from data.datamodule import ClipDataModule
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

"""What we read of Lightning's private parts is there and means what we take it for."""

import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from tae.runtime.lightning_internals import is_logged_step, sibling_processes, validation_follows
from tae.training.callbacks import ProgressBar

ROOT = Path(__file__).parents[3]


class Recorder(L.Callback):
    def __init__(self) -> None:
        self.logged: list[int] = []
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if is_logged_step(trainer):
            self.logged.append(trainer.global_step)
        if validation_follows(trainer):
            self.validated.append(trainer.global_step)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_logged_steps_and_validations_are_those_of_lightning(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=6, log_every_n_steps=2, val_check_interval=3, limit_val_batches=1,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, callbacks=[recorder], enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, logger=CSVLogger(tmp_path),
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert recorder.logged == [2, 4, 6]
    assert recorder.validated == [3, 6]
    assert not validation_follows(L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_processes_that_lightning_started_are_listed() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(), logger=False, enable_checkpointing=False)
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, _SubprocessScriptLauncher)
    assert sibling_processes(trainer) == []
    process = subprocess.Popen(["true"])
    process.wait()
    launcher.procs.append(process)
    assert sibling_processes(trainer) == [process]
    alone = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert sibling_processes(alone) == []


def test_the_bars_description_is_lightnings_to_override() -> None:
    assert issubclass(ProgressBar, RichProgressBar)
    assert hasattr(RichProgressBar, "_get_train_description")


def test_private_parts_are_read_in_one_file() -> None:
    private = ("trainer._", "loop._", "strategy._")
    files = (*(ROOT / "tae").rglob("*.py"), *(ROOT / "data").rglob("*.py"))
    readers = [path for path in files if any(part in path.read_text() for part in private)]
    assert readers == [ROOT / "tae/runtime/lightning_internals.py"]

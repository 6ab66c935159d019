"""Progress of a Lightning Trainer's evaluation loops: its bar on a terminal, lines of text everywhere else."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.progress import TaskID

from tae.runtime.console import plain_console
from tae.runtime.progress import ProgressLines, is_interactive


def evaluation_progress() -> ProgressBar:
    """Lightning's bar where standard output is a terminal, else `EvaluationLines`."""
    return RichProgressBar() if is_interactive(plain_console()) else EvaluationLines()


class EvaluationLines(ProgressBar):
    """Lines on standard output about how far a validation, test or prediction is; none about training."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = True
        self._counted: tuple[ProgressLines, TaskID] | None = None

    def disable(self) -> None:
        self.shown = False

    def enable(self) -> None:
        self.shown = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print at once, also into a file."""
        if self.shown:
            print(*args, flush=True, **kwargs)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("validation", trainer.num_val_batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("evaluation", trainer.num_test_batches)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(getattr(pl_module, "predicts", "prediction"), trainer.num_predict_batches)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if batch_idx + 1 < trainer.num_val_batches[-1]:  # its figures are the line that follows the last batch
            self._advance()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance()

    def _begin(self, what: str, batches: Any) -> None:
        """Count the batches of this process from now on."""
        lines = ProgressLines("batches", plain_console())
        self._counted = lines, lines.add_task(what, total=sum(batches) if isinstance(batches, list) else batches)

    def _advance(self) -> None:
        if self._counted is not None and self.shown:
            lines, task = self._counted
            lines.advance(task)

"""What keeps a run: `best.ckpt` and `last.ckpt`, written whole, and a clean end when its machine is taken away."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from tae.model.checkpoint_file import read_checkpoint
from tae.runtime.annotations import NotNegative
from tae.runtime.files import replacing
from tae.runtime.lightning_internals import sibling_processes, validation_follows
from tae.runtime.signals import Preempted, StopSignals, handle

LAST_WORDS = 10.0  # seconds for the other processes of a failed run to say why


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints that appear whole or not at all, and are read without running anything in them.

    Lightning's own way writes to the system's temporary folder and moves the file from there, which on another disk is a
    copy: a process that dies in it leaves half a checkpoint under the final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read to the CPU and check; the arguments are Lightning's and change nothing."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the weights with the best validation metric so far.

    What a resumed run knows of its best checkpoint, its score above all, is about the file of that name in this run's
    folder, wherever the folder was when it was written: runs are moved and copied.

    Args:
        folder: of the checkpoints.
        monitor: the logged value that is compared.
        mode: "max" keeps the highest, "min" the lowest, for metrics such as val/lpips.
    """

    def __init__(self, folder: str, monitor: str, mode: Literal["max", "min"] = "max") -> None:
        super().__init__(
            dirpath=folder, filename="best", monitor=monitor, mode=mode, enable_version_counter=False, save_top_k=1
        )

    @property
    def state_key(self) -> str:
        """Lightning's own, so that checkpoints of earlier versions keep their best score."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = Path(self.dirpath or "", Path(state_dict["best_model_path"]).name)
        if not best.is_file():  # of another run, or none yet: the next validation is the best one here
            return
        here: dict[str, Any] = {"dirpath": self.dirpath, "best_model_path": str(best)}
        if state_dict.get("best_k_models"):
            here |= {"kth_best_model_path": str(best), "best_k_models": {str(best): state_dict["best_model_score"]}}
        super().load_state_dict(state_dict | here)


class LastCheckpoint(Checkpoint):
    """`last.ckpt`: the newest state, written every few steps, before each validation, when training ends or is stopped.

    A SIGTERM or SIGUSR1 lets the running step end, in all processes the same one, and then writes it. During a validation
    one process stops at once, since the state was saved before it; several stop at its end, where they meet again.
    A run that ended in a validation starts with it when it resumes.

    Args:
        folder: of the checkpoints.
        every_n_steps: how often it is written besides; 0 or None: never.
    """

    def __init__(self, folder: str, every_n_steps: NotNegative | None) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self.validation_pending = False
        self.saved_step: int | None = None
        self.signals = StopSignals()

    def state_dict(self) -> dict[str, Any]:
        return {"validation_pending": self.validation_pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation_pending = state_dict["validation_pending"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.keep(trainer)
        if self.validation_pending:  # Lightning would pass over it
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False
            trainer.validating = True
            validation.run()
            trainer.training = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if pl_module.between_steps:  # no checkpoint holds the gradients of half a step
            trainer.should_stop = False  # of `max_time`, which asks again after the next batch
            return
        if trainer.global_step >= trainer.max_steps > 0:
            return  # `on_train_end` saves, after the last validation: a finished run would not make up for it
        self.validation_pending = validation_follows(trainer)
        stop = self.signals.agreed()
        due = (
            self.every_n_steps is not None and self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        )
        if stop or self.validation_pending or due:
            self.save(trainer)
        if stop:
            self.stop(trainer, stop)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self.signals.obey(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.signals.received and trainer.world_size == 1:
            self.stop(trainer, self.signals.received)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validation_pending = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        in_training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if in_training and not pl_module.between_steps and (stop := self.signals.agreed()):
            self.save(trainer)
            self.stop(trainer, stop)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        if stop := self.signals.agreed():  # not into the evaluation
            self.stop(trainer, stop)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the processes along that would wait for this one in a collective call, for half an hour with NCCL."""
        if isinstance(exception, Preempted | KeyboardInterrupt):
            return
        for process in sibling_processes(trainer):
            try:
                process.wait(LAST_WORDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step

    def stop(self, trainer: L.Trainer, number: int) -> NoReturn:
        """Say where the state is, ask SLURM for another turn where that is set up, and end."""
        handle(signal.SIG_IGN)  # SLURM sends a SIGTERM as soon as a job is requeued
        if trainer.is_global_zero:
            state = "nothing was saved yet" if self.saved_step is None else f"{self.path} holds step {self.saved_step}"
            print(
                f"{signal.Signals(number).name}: stopped after step {trainer.global_step}; {state}. Resume with the same "
                f"command and output_dir={self.path.parents[1]} resume=auto",
                file=sys.stderr,
                flush=True,
            )
        if number == signal.SIGUSR1 and callable(self.signals.earlier):
            self.requeue(trainer, number)
        # Where Lightning started the other processes it kills the first one as soon as another ends with a code.
        raise Preempted(0 if trainer.local_rank else 128 + number)

    def requeue(self, trainer: L.Trainer, number: int) -> None:
        """Call the handler of before: Lightning's, which saves `hpc_ckpt_N.ckpt` and calls `scontrol requeue`."""
        old = list(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        self.signals.earlier(number, None)
        if trainer.is_global_zero:
            for path in old:
                path.unlink()

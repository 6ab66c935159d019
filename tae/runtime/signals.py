"""SIGTERM and SIGUSR1: noted until the running step is done, or obeyed at once."""

import os
import signal
import sys
import threading
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST = 5.0  # seconds within which launchers and schedulers may deliver one request more than once


class Preempted(SystemExit):
    """The end of a run that a signal stopped. Its exit code is 128 + the signal's number, as a shell would show it."""


class StopSignals:
    """SIGTERM and SIGUSR1, either kept until the running step is done or obeyed at once."""

    def __init__(self) -> None:
        self.received = 0
        self.when = 0.0
        self.earlier: Any = None
        self.group: Any = None  # of all processes, on the CPU: asking there does not wait for the GPU's work

    def keep(self, trainer: L.Trainer) -> None:
        """Note a signal for `agreed`; a second one, later than `SAME_REQUEST`, ends the process at once.

        Lightning's own handlers are replaced: it has every process answer SIGTERM with a collective call in the middle of
        whatever it does, and a SLURM requeue with a checkpoint in the middle of a step.
        """
        self.received = 0
        if trainer.world_size > 1:
            self.group = torch.distributed.new_group(backend="gloo")
        self.earlier = signal.getsignal(signal.SIGUSR1)

        def note(number: int, frame: Any) -> None:
            if not self.received:
                self.received, self.when = number, time.monotonic()
            elif time.monotonic() - self.when > SAME_REQUEST:
                end_by_signal(trainer, number)

        handle(note)

    def obey(self, trainer: L.Trainer) -> None:
        """End at once: for work that keeps nothing to resume from."""
        handle(lambda number, frame: end_by_signal(trainer, number))

    def agreed(self) -> int:
        """The signal that any process has received, or 0; the same in all of them. All processes must call it together."""
        if self.group is None:
            return self.received
        highest = torch.tensor(self.received)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, self.group)
        return int(highest)


def handle(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # Python takes handlers from no other
        for number in STOP_SIGNALS:
            signal.signal(number, handler)


def end_by_signal(trainer: L.Trainer, number: int) -> None:
    """End this process and those that it started by the signal itself."""
    if trainer.strategy.launcher is not None:
        trainer.strategy.launcher.kill(signal.SIGKILL)
    print(f"{signal.Signals(number).name}: ended at once", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


class EndOnSignal(Callback):
    """An evaluation has nothing to resume from: a signal ends it at once. (Lightning would report success.)"""

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        StopSignals().obey(trainer)

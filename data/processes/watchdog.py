"""The watchdog of the workers: which clip each one decodes, and ending one that hangs."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

import torch

POLL_SECONDS = 0.5  # between two looks at what the workers do


class Heartbeats:
    """Memory in which the workers of one process show it which clip they are decoding.

    A decoder that hangs in C code never returns to Python, and one that crashes takes its process with it: only another
    process can tell which clip it was.
    """

    IDLE = -1

    def __init__(self, num_workers: int) -> None:
        self._rows = torch.full((num_workers, 2), self.IDLE).share_memory_()  # (number of the clip, serial number)

    @contextmanager
    def decoding(self, worker: int, clip: int) -> Iterator[None]:
        """For as long as the context lasts the worker is seen to be at the clip of this number."""
        row = self._rows.numpy()[worker]
        row[1] += 1
        row[0] = clip
        try:
            yield
        finally:
            row[0] = self.IDLE

    def read(self, worker: int) -> tuple[int, int]:
        """The clip's number, IDLE between clips, and how many clips the worker has begun."""
        number, serial = self._rows[worker].tolist()
        return number, serial


class Watchdog:
    """A thread that kills workers which are at one clip for too long, and knows how workers ended.

    It counts its own looks instead of reading a clock, so that a process which was stopped for an hour does not take its
    workers, which were stopped too, for hanging.
    """

    def __init__(self, heartbeats: Heartbeats, workers: Sequence[Any], timeout: float) -> None:
        self._heartbeats = heartbeats
        self._workers = workers
        self._timeout = timeout
        self._killed: dict[int, int] = {}  # worker -> clip
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="watch over the data workers", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def find_dead(self) -> list[tuple[int, str]]:
        """(number of the clip or Heartbeats.IDLE, reason) of each worker that did not end by itself.

        Waits a little: a worker's last sign may be a broken connection, shortly before the system tells that it is gone.
        """
        for _ in range(20):
            codes = {worker: process.exitcode for worker, process in enumerate(self._workers)}
            if dead := [worker for worker, code in codes.items() if code]:
                return [(self._clip_of(worker), self._reason(worker, codes[worker])) for worker in dead]
            time.sleep(0.1)
        return []

    def _run(self) -> None:
        looks = [0] * len(self._workers)
        seen = [(Heartbeats.IDLE, 0)] * len(self._workers)
        while not self._stopped.wait(POLL_SECONDS):
            # By their sentinels: only one thread may ask for an exit code.
            ended = wait([process.sentinel for process in self._workers], timeout=0)
            for worker, process in enumerate(self._workers):
                if process.sentinel in ended:
                    continue
                now = self._heartbeats.read(worker)
                looks[worker] = looks[worker] + 1 if now == seen[worker] else 0
                seen[worker] = now
                if now[0] != Heartbeats.IDLE and looks[worker] * POLL_SECONDS >= self._timeout:
                    self._killed.setdefault(worker, now[0])
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

    def _clip_of(self, worker: int) -> int:
        return self._killed.get(worker, self._heartbeats.read(worker)[0])

    def _reason(self, worker: int, code: int) -> str:
        if worker in self._killed:
            return f"not done after {self._timeout:g} s (data.decode_timeout)"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, as systems do that run out of memory"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

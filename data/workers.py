"""Worker processes: how their batches come over, how it is seen which clip each is at, and who ends one that hangs.

PyTorch sends a tensor from a worker in new shared memory each time, and new pages cost more than all else that happens
to a decoded clip. Here a worker writes into a few pieces of memory in turns, and the training process copies a batch out
as soon as it arrives. A piece is written again only when the reader has said that it is free, so no batch can change
after it was handed out.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Not fork: libav and torch keep threads and locks that a forked child would inherit in an undefined state. The fork
# server imports torch once, in a process without threads, and forks from there: as safe as spawn, much faster.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PRELOADED = ["data.stream", "data.journal", "tae.cli"]  # the same for all: a process has one fork server

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)
POLL_SECONDS = 0.5  # between two looks at what the workers do


def worker_context() -> Any:
    """How worker processes are started.

    Schedulers send SIGTERM and SIGUSR1 to all processes of a run. The training process answers, and needs its workers for
    the step that it finishes: they, and the fork server, get these signals blocked, as children inherit it.
    """
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD != "forkserver":
        return context
    context.set_forkserver_preload(PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # on its own, since it unblocks SIGTERM again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Context()


def prepare_worker(worker: int) -> None:
    """The DataLoader's `worker_init_fn`: one thread, as more in each worker would compete, and no life after the parent.

    PyTorch watches for the death of the process that forked the worker. That is the fork server, which lives as long as a
    worker does, so that both would outlive a training that is killed.
    """
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="end with the training process", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Process(ForkServerProcess):
    """To terminate one is to kill it, since SIGTERM does not reach it."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  (multiprocessing's name)
        child = ForkServerProcess._Popen(process_obj)  # type: ignore[attr-defined]
        child.terminate = child.kill  # type: ignore[method-assign]
        return child


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]


class BatchWriter:
    """The worker's end."""

    def __init__(self, memory: Tensor, freed: Connection) -> None:
        self._memory = memory
        self._freed = freed
        self._free = len(memory)
        self._next = 0

    def memory(self) -> Tensor:
        """The piece that the next batch belongs into; waits for one if none is free.

        Raises:
            EOFError: the training process is gone.
        """
        while self._free == 0:
            self._freed.recv_bytes()
            self._free += 1
        return self._memory[self._next]

    def hand_over(self) -> int:
        """The piece has been written; returns its number for `BatchReader.read`."""
        piece = self._next
        self._free -= 1
        self._next = (piece + 1) % len(self._memory)
        return piece


class BatchReader:
    """The training process' end. Pieces must be read in the order in which they were written."""

    def __init__(self, memory: Tensor, freed: Connection) -> None:
        self._memory = memory
        self._freed = freed

    def read(self, piece: int, clips: int) -> Tensor:
        """A copy of the batch, in page-locked memory where there is a GPU to send it to; the piece is free again."""
        shared = self._memory[piece, :clips]
        batch = torch.empty_like(shared, pin_memory=torch.cuda.is_available())
        # Not torch's copy: its threads spin for a while after each, on the cores that the workers need.
        np.copyto(batch.numpy(), shared.numpy())
        self._freed.send_bytes(b"free")
        return batch


def exchange(shape: Sequence[int], pieces: int, context: BaseContext) -> tuple[BatchWriter, BatchReader]:
    """Two ends of `pieces` pieces of memory, each for a uint8 batch of at most `shape`."""
    memory = torch.empty((pieces, *shape), dtype=torch.uint8).share_memory_()
    receiver, sender = context.Pipe(duplex=False)
    return BatchWriter(memory, receiver), BatchReader(memory, sender)


class Board:
    """Memory in which the workers of one process show it which clip they are decoding.

    A decoder that hangs in C code never returns to Python, and one that crashes takes its process with it: only another
    process can tell which clip it was.
    """

    IDLE = -1

    def __init__(self, num_workers: int) -> None:
        self._rows = torch.full((num_workers, 2), self.IDLE).share_memory_()  # (number of the clip, serial number)

    @contextmanager
    def shows(self, worker: int, clip: int) -> Iterator[None]:
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


class Watch:
    """A thread that kills workers which are at one clip for too long, and knows how workers ended.

    It counts its own looks instead of reading a clock, so that a process which was stopped for an hour does not take its
    workers, which were stopped too, for hanging.
    """

    def __init__(self, board: Board, workers: Sequence[Any], timeout: float) -> None:
        self._board = board
        self._workers = workers
        self._timeout = timeout
        self._killed: dict[int, int] = {}  # worker -> clip
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="watch over the data workers", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def find_dead(self) -> list[tuple[int, str]]:
        """(number of the clip or Board.IDLE, reason) of each worker that did not end by itself.

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
        seen = [(Board.IDLE, 0)] * len(self._workers)
        while not self._stopped.wait(POLL_SECONDS):
            # By their sentinels: only one thread may ask for an exit code.
            ended = wait([process.sentinel for process in self._workers], timeout=0)
            for worker, process in enumerate(self._workers):
                if process.sentinel in ended:
                    continue
                now = self._board.read(worker)
                looks[worker] = looks[worker] + 1 if now == seen[worker] else 0
                seen[worker] = now
                if now[0] != Board.IDLE and looks[worker] * POLL_SECONDS >= self._timeout:
                    self._killed.setdefault(worker, now[0])
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)

    def _clip_of(self, worker: int) -> int:
        return self._killed.get(worker, self._board.read(worker)[0])

    def _reason(self, worker: int, code: int) -> str:
        if worker in self._killed:
            return f"not done after {self._timeout:g} s (data.decode_timeout)"
        if code == -signal.SIGKILL:
            return "killed by SIGKILL, as systems do that run out of memory"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

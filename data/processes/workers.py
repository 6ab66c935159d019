"""Worker processes: how their batches come over, how it is seen which clip each is at, and who ends one that hangs.

PyTorch sends a tensor from a worker in new shared memory each time, and new pages cost more than all else that happens
to a decoded clip. Here a worker writes into a few pieces of memory in turns, and the training process copies a batch out
as soon as it arrives. A piece is written again only when the reader has said that it is free, so no batch can change
after it was handed out.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import torch

# Not fork: libav and torch keep threads and locks that a forked child would inherit in an undefined state. The fork
# server imports torch once, in a process without threads, and forks from there: as safe as spawn, much faster.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
# The same for all: a process has one fork server. What is loaded here no worker loads again.
PRELOADED = ["data.loading.loader", "data.ingest.bucket", "tae.runtime.cli"]

BLOCKED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else (signal.SIGTERM,)


def worker_context() -> Any:
    """How worker processes are started.

    Schedulers send SIGTERM and SIGUSR1 to all processes of a run. The training process answers, and needs its workers for
    the step that it finishes: they, and the fork server, get these signals blocked, as children inherit it.
    """
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD != "forkserver":
        return context
    context.set_forkserver_preload(PRELOADED)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    try:
        resource_tracker.ensure_running()  # on its own, since it unblocks SIGTERM again
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
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
    threading.Thread(target=end_with_parent, name="end with the training process", daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the process that asked for this one, and end too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def without_main() -> Iterator[None]:
    """Let a process be started that does not import the program's main module, as multiprocessing's children do.

    Workers take nothing from there, and train.py loads Lightning and all metrics: seconds for each worker, each time that
    a validation starts some.
    """
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


class _Process(ForkServerProcess):
    """To terminate one is to kill it, since SIGTERM does not reach it."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  (multiprocessing's name)
        with without_main():
            child = ForkServerProcess._Popen(process_obj)  # type: ignore[attr-defined]
        child.terminate = child.kill  # type: ignore[method-assign]
        return child


class _Context(ForkServerContext):
    Process = _Process  # type: ignore[assignment]

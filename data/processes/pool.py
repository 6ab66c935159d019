"""One function on many files, in processes of their own: a crash or a hang costs that file alone.

The same on this machine and on a cluster: joblib hands out the tasks, to threads here or to the workers of a dask
cluster, and whoever gets one has it done by a child process that may be ended.
"""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import TimeoutError as TaskTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import current_process
from pathlib import Path
from typing import Any, TypeVar

import joblib
from pebble import ProcessExpired, ProcessPool

from data.processes.workers import end_with_parent, worker_context
from tae.runtime.errors import UserError

ENGINES = ("local", "dask")
START_SECONDS = 5.0  # that starting children are waited for before the end
GRACE = 10  # seconds after the time limit at which the system ends a child that nobody else has ended

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Engine:
    """Where tasks run: in `workers` processes here (None: one for every core), or on the dask cluster at `dask_address`."""

    kind: str = "local"
    workers: int | None = None
    dask_address: str | None = None
    connect_timeout: float = 30.0  # seconds

    def __post_init__(self) -> None:
        if self.kind not in ENGINES:
            raise UserError(f"engine={self.kind} is unknown. Choose one of: {', '.join(ENGINES)}.")
        if (self.kind == "dask") != (self.dask_address is not None):
            raise UserError(
                f"engine={self.kind} and dask_address={self.dask_address} do not go together: engine=dask needs the "
                "address of the cluster's scheduler (dask_address=tcp://HOST:8786), engine=local has none."
            )
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1, or null for one process on every core.")

    @property
    def processes(self) -> int:
        """Local processes at most."""
        return self.workers or joblib.cpu_count()


@dataclass(frozen=True)
class Failure:
    """A task that gave no result; `reason` in plain words, `timed_out`: by the limit that it set itself (`limit_time`)."""

    reason: str
    timed_out: bool = False


def run_isolated(
    function: Callable[[Task], Result], tasks: Iterable[Task], timeout: float | None, engine: Engine
) -> Generator[tuple[Task, Result | Failure], None, None]:
    """Each task with its result, as they get done, in any order; tasks are taken a few at a time.

    Args:
        function: is pickled by name: a function of a module, which the workers of a cluster can import too.
        timeout: seconds of a task in its process, after which that process is ended; None: parts of it have limits of
            their own (`limit_time`).

    Raises:
        UserError: raised by `function`, or the cluster cannot be reached. Any other exception becomes a `Failure`.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, engine.processes))  # no more processes than tasks: one that is still starting ends badly
    if not first:
        return
    with _dispatcher(engine, len(first)) as (parallel, processes):
        job = joblib.delayed(_in_child)
        alone = engine.kind == "local"  # workers of a cluster may share a machine
        done = parallel(job(function, task, timeout, processes, alone) for task in chain(first, tasks))
        try:
            for task_and_result in done:  # noqa: UP028  `yield from` would close it outside of the filter
                yield task_and_result
        finally:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*tasks", UserWarning)  # to be stopped in the middle is no news
                done.close()


@contextmanager
def _dispatcher(engine: Engine, tasks: int) -> Iterator[tuple[joblib.Parallel, int]]:
    """joblib's way to hand out `tasks` or more of them, and how many child processes each of its workers needs."""
    options: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "2*n_jobs"}
    if engine.kind == "local":
        workers = min(engine.processes, tasks)
        try:
            yield joblib.Parallel(n_jobs=workers, backend="threading", **options), workers
        finally:
            _end_children()
    else:
        with _connected(engine) as client, joblib.parallel_config(backend="dask", client=client):
            yield joblib.Parallel(n_jobs=-1, **options), max(client.nthreads().values(), default=1)


@contextmanager
def _connected(engine: Engine) -> Iterator[Any]:
    """A client of the cluster; what the cluster cannot repair by itself is the user's to repair."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("engine=dask needs the package `distributed`: pip install distributed.") from error
    try:
        with Client(engine.dask_address, timeout=engine.connect_timeout, set_as_default=False) as client:
            try:
                yield client
            finally:
                client.run(_end_children)
    except (OSError, KilledWorker) as error:
        raise UserError(
            f"dask_address={engine.dask_address}: {error or 'no answer'}. Are its scheduler and workers running? "
            "What is done is kept: repeat the command to resume."
        ) from error


_pool: ProcessPool | None = None
_started: Any = None  # process numbers of the pool's children, in shared memory: 0 where none has started yet
_pool_lock = threading.Lock()
_is_child = False


def _in_child(
    function: Callable[[Task], Result], task: Task, timeout: float | None, processes: int, alone: bool
) -> tuple[Task, Result | Failure]:
    """Run in a thread of this process, or of a worker of the cluster: have a child do it and wait for that."""
    try:
        future = _children(processes, alone).schedule(_with_alarm, args=[function, task, timeout], timeout=timeout)
        return task, future.result()
    except TaskTimeout:
        return task, Failure(f"took more than {timeout:g} s")
    except ProcessExpired as error:
        timed_out = hasattr(signal, "SIGALRM") and error.exitcode == -signal.SIGALRM
        return task, Failure(f"ended the process (exit code {error.exitcode})", timed_out)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file provokes in a library must not stop the others
        return task, Failure(f"failed: {type(error).__name__}: {error}")


def _children(processes: int, alone: bool) -> ProcessPool:
    global _pool, _started
    with _pool_lock:
        if _pool is None:
            context = worker_context()
            current_process().daemon = False  # as the workers of dask are, whereas a daemon may have no children
            _started = context.Array("i", processes)
            _pool = ProcessPool(processes, context=context, initializer=_begin_child, initargs=[_started, alone])
        return _pool


def _end_children() -> None:
    global _pool, _started
    with _pool_lock:
        if _pool is not None:
            # One that is still starting would miss the locks that go with the pool, and end in a traceback.
            deadline = time.monotonic() + START_SECONDS
            while not all(_started) and time.monotonic() < deadline:
                time.sleep(0.01)
            _pool.stop()
            _pool.join()
            _pool = _started = None


def _begin_child(started: Any, alone: bool) -> None:
    """In a new child: take a place among the started ones, and a core where the children take all of this machine.

    decord decodes in a thread beside the one that asks for frames; spread over two cores, the pair takes a quarter more
    of the processor's time. The place of a dead child is free again.
    """
    global _is_child
    _is_child = True
    # Whoever repeats the command after its process was killed must not meet children of it that still write.
    threading.Thread(target=end_with_parent, name="end with the parent", daemon=True).start()
    with started.get_lock():
        place = next((place for place, process in enumerate(started) if not _is_alive(process)), None)
        if place is None:
            return
        started[place] = os.getpid()
    if alone and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if len(started) == len(cores):
            os.sched_setaffinity(0, {cores[place]})


def _is_alive(process: int) -> bool:
    return process > 0 and Path(f"/proc/{process}").exists()


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """In a child: end it if the block takes longer, for a task of `run_isolated` without a limit; elsewhere do nothing."""
    limited = _is_child and hasattr(signal, "setitimer")
    if limited:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _with_alarm(function: Callable[[Task], Result], task: Task, timeout: float | None) -> Result:
    """In the child. Should the process that minds the time limit be killed, a hang must still end."""
    if timeout is not None and hasattr(signal, "alarm"):
        signal.alarm(math.ceil(timeout) + GRACE)
    try:
        return function(task)
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)

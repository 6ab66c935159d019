"""Progress on standard error: a bar on a terminal, lines of text everywhere else (nohup, tee, SLURM, CI)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from tae.runtime.console import plain_console

BYTES = "bytes"


def progress_bar(unit: str = "", shown: bool = True) -> Progress:
    """A progress display that counts `unit`; not `shown`: nothing at all.

    Args:
        unit: of what is counted; `BYTES` are shown as megabytes with their rate.
        shown: false in all processes but the first.
    """
    console = plain_console(stderr=True)
    if shown and not is_interactive(console):
        return ProgressLines(unit, console)
    counted: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn(unit, markup=False), TimeElapsedColumn())
    if unit == BYTES:
        counted = (DownloadColumn(), TransferSpeedColumn())
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counted, TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shown)


@contextmanager
def stage(description: str) -> Iterator[None]:
    """Say what takes a while and has no steps to count: a spinner on a terminal, else one line when it begins."""
    console = plain_console(stderr=True)
    if is_interactive(console):
        with console.status(Text(description)):
            yield
    else:
        console.print(f"{description} ...", soft_wrap=True)
        yield


def is_interactive(console: Console) -> bool:
    """Whether a bar can be drawn over itself."""
    return console.is_interactive or console.is_jupyter


class ProgressLines(Progress):
    """The tasks of a progress bar as lines of text: seldom enough for a log, and one when a task is complete."""

    FIRST, LAST = 10.0, 600.0  # seconds between two lines, at first and at most
    SHARE = 0.1  # of the time so far: the longer something takes, the rarer its lines

    def __init__(self, unit: str, console: Console, **kwargs: Any) -> None:
        super().__init__(console=console, disable=True, auto_refresh=False, **kwargs)
        self.unit = unit
        self._said: dict[TaskID, float] = {}  # when each task said something last
        self._started_at: dict[TaskID, float] = {}  # what was complete before: a repeated command resumes

    def add_task(self, description: str, *args: Any, **kwargs: Any) -> TaskID:
        task = super().add_task(description, *args, **kwargs)
        self._said[task] = self.get_time()
        self._started_at[task] = self._tasks[task].completed
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        before = self._is_complete(task_id)
        super().advance(task_id, advance)
        self._say(task_id, before)

    def update(self, task_id: TaskID, **kwargs: Any) -> None:
        before = self._is_complete(task_id)
        super().update(task_id, **kwargs)
        self._say(task_id, before)

    def _is_complete(self, task_id: TaskID) -> bool:
        return self._tasks[task_id].finished

    def _say(self, task_id: TaskID, was_complete: bool) -> None:
        task, now = self._tasks[task_id], self.get_time()
        elapsed = task.elapsed or 0.0
        interval = min(max(self.FIRST, self.SHARE * elapsed), self.LAST)
        if was_complete or not (task.finished or now - self._said[task_id] >= interval):
            return
        self._said[task_id] = now
        amounts = [self._amount(amount) for amount in (task.completed, task.total) if amount is not None]
        unit = self.unit if self.unit != BYTES else ""
        text = f"{task.description}: {'/'.join(amounts)} {unit}".rstrip() + f", {self._times(task_id, elapsed)}"
        self.console.print(text, soft_wrap=True)

    def _times(self, task_id: TaskID, elapsed: float) -> str:
        task = self._tasks[task_id]
        if task.finished:
            return f"done in {clock(elapsed)}"
        done = task.completed - self._started_at[task_id]
        left = f", {clock(elapsed / done * (task.total - task.completed))} left" if task.total and done > 0 else ""
        return f"{clock(elapsed)} so far{left}"

    def _amount(self, value: float) -> str:
        return decimal(int(value)) if self.unit == BYTES else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """A duration as a clock shows it: 4:07, 1:02:09, 3 d 4:00:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if not hours:
        return f"{minute}:{second:02}"
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"

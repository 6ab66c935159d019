"""What a log shows of long work where no bar can be drawn."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.progress import Progress

from tae.runtime.progress import BYTES, ProgressLines, clock, progress_bar, stage
from tae.runtime.trainer_progress import EvaluationLines, evaluation_progress
from tae.training.callbacks import ProgressBar, TrainingLines, training_progress


class Log:
    """Progress lines on a clock that the test moves."""

    def __init__(self, unit: str) -> None:
        self.file = io.StringIO()
        self.now = 1000.0
        self.progress = ProgressLines(
            unit, Console(file=self.file, markup=False, highlight=False), get_time=lambda: self.now
        )

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def test_lines_come_seldom_and_at_the_end() -> None:
    log = Log("files")
    task = log.progress.add_task("checking [a]", total=3000)
    for _ in range(3000):
        log.now += 1.0
        log.progress.advance(task)
    lines = log.lines()
    assert lines[0] == "checking [a]: 10/3,000 files, 0:10 so far, 49:50 left"  # brackets are no markup
    assert lines[-1] == "checking [a]: 3,000/3,000 files, done in 50:00"
    assert 30 < len(lines) < 60  # every 10 s would be 300


def test_time_left_counts_what_this_call_does() -> None:
    """A repeated command resumes with 900 of 1000 files: at 1 file a second 90 more take 90 seconds, not 1.1."""
    log = Log("files")
    task = log.progress.add_task("checking", total=1000, completed=900)
    for _ in range(10):
        log.now += 1.0
        log.progress.advance(task)
    assert log.lines() == ["checking: 910/1,000 files, 0:10 so far, 1:30 left"]


def test_bytes_and_an_unknown_total() -> None:
    log = Log(BYTES)
    task = log.progress.add_task("fetching", total=None)
    log.now += 11
    log.progress.update(task, completed=5_000_000)
    assert log.lines() == ["fetching: 5.0 MB, 0:11 so far"]


def test_work_that_is_tracked_ends_with_a_line() -> None:
    log = Log("clips")
    with log.progress as progress:
        assert list(progress.track(range(3), description="writing")) == [0, 1, 2]
    assert log.lines() == ["writing: 3/3 clips, done in 0:00"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (247, "4:07"), (3729, "1:02:09"), (3 * 86400 + 4 * 3600, "3 d 4:00:00")]
)
def test_durations_as_a_clock_shows_them(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("make", "lines", "bar"),
    [
        (progress_bar, ProgressLines, Progress),
        (evaluation_progress, EvaluationLines, None),
        (lambda: training_progress(10), TrainingLines, ProgressBar),
        (lambda: training_progress(0), ProgressBar, ProgressBar),
    ],
)
def test_a_terminal_gets_a_bar_and_a_file_lines(
    make: Callable[[], object], lines: type, bar: type | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert type(make()) is lines
    monkeypatch.setenv("TTY_INTERACTIVE", "1")  # rich's own word for it
    assert type(make()) is (bar or type(evaluation_progress()))
    assert not isinstance(make(), EvaluationLines | ProgressLines)


def test_a_stage_says_what_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with stage("reading [x]"):
        assert capsys.readouterr().err == "reading [x] ...\n"

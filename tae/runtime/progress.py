"""Progress bars on standard error."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(unit: str = "", shown: bool = True) -> Progress:
    """Counts `unit` on standard error, where there is a terminal; not `shown`: by nobody."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, *times, console=Console(stderr=True), disable=not shown)

"""What comes from files, libraries and settings is printed as it is, on any terminal."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from data.ingest.pipeline import Preparation
from data.ingest.rejected import REJECTED, write_rejected
from data.ingest.run import print_preparation
from tae.runtime import console as consoles
from tae.runtime.console import plain_console
from tae.runtime.progress import progress_bar, stage

ROOT = Path(__file__).parents[3]
FOREIGN = ["cannot open [/proc/self/fd/7]", "movie [x264].mp4", "[red]x", ":smile: [/]"]


@pytest.mark.parametrize("text", FOREIGN)
def test_brackets_stay_in_text_and_tables(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    plain_console().print(table)
    plain_console().print(text)
    assert capsys.readouterr().out.count(text) == 5


@pytest.mark.parametrize("text", FOREIGN)
def test_brackets_stay_in_progress(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = consoles.Console(file=screen, force_terminal=True, width=120, markup=False, emoji=False)
    monkeypatch.setattr("tae.runtime.progress.plain_console", lambda stderr: terminal)
    with progress_bar("frames") as progress:
        progress.add_task(text, total=1)
    with stage(text):
        pass
    assert screen.getvalue().count(text) >= 2


def test_the_table_of_a_preparation_shows_a_decoders_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rejected(tmp_path / REJECTED, [("a.ogv", FOREIGN[0])])
    print_preparation(Preparation(tmp_path, {"train": 1}), Path("shards [new]"))
    out = capsys.readouterr().out
    assert FOREIGN[0] in out
    assert "shards [new]" in out


def test_no_console_is_made_elsewhere() -> None:
    """One that reads markup would take foreign text for it again."""
    files = [*(ROOT / "tae").rglob("*.py"), *(ROOT / "data").rglob("*.py")]
    made = [path for path in files if re.search(r"(?<!plain_)\bConsole\(|rich\.print|from_markup", path.read_text())]
    assert made == [ROOT / "tae/runtime/console.py"]


def test_a_terminal_that_is_not_utf8_ends_nothing() -> None:
    code = "from tae.runtime.console import prepare_output; prepare_output(); print('\\u2022 a \\u2192 b')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\\u2022 a \\u2192 b\n"

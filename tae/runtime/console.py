"""Consoles that print text as it is: names of files, messages of libraries and settings often hold brackets."""

import io
import sys

from rich.console import Console

from tae.runtime.ownership import is_first_process


def plain_console(stderr: bool = False) -> Console:
    """A console without markup, emoji codes and colours by content, all of which rich would find in foreign text."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print a line, once for all processes of a run."""
    if is_first_process():
        print(text)


def prepare_output() -> None:
    """Set up standard output for a command: a line at a time, and no character that ends it.

    A log is read while the run goes on, so lines are written as they come in a file too. A terminal that cannot show a
    character (PYTHONIOENCODING=ascii, an old locale) gets its escape sequence.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")

"""UserError, a mistake that the user can fix; other exceptions in a line."""

import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and what to do.

    Entry points print it to standard error without a traceback and exit with a code that is not 0 (`tae.runtime.cli`).
    """


def first_line(error: BaseException) -> str:
    """What went wrong, short: libraries' messages run over many lines, or have none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def with_full_keys(message: str, section: str, names: Iterable[str]) -> str:
    """A message about a function's arguments, under their keys in the config: `a=1` as `data.a=1`.

    Args:
        message: what the function says, each line about one argument, which it begins with, or that it names further on.
        section: the node of the config that the function is built from.
        names: of the settings there.
    """
    named = "|".join(map(re.escape, names)) or "(?!)"
    return re.sub(rf"^(?=\w+=)|(?<![\w.])(?=(?:{named})=)", f"{section}.", message, flags=re.MULTILINE)

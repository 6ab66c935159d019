"""UserError, a mistake that the user can fix; other exceptions in a line."""


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and what to do.

    Entry points print it to standard error without a traceback and exit with a code that is not 0 (`tae.runtime.cli`).
    """


def first_line(error: BaseException) -> str:
    """What went wrong, short: libraries' messages run over many lines, or have none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

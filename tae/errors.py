"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was given, what is allowed and what to do.

    Entry points print it to standard error without a traceback and exit with a code that is not 0 (`tae.cli`).
    """

"""Other people's exceptions in a line."""

import pytest

from tae.runtime.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("short", "short"), ("\n  what is wrong\nand where", "what is wrong"), (" \n", "ValueError"), ("", "ValueError")],
)
def test_the_first_line_that_says_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line

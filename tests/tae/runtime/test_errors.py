"""Messages: other people's exceptions in a line, and arguments under their keys in the config."""

import pytest

from tae.runtime.errors import first_line, with_full_keys


@pytest.mark.parametrize(
    ("message", "line"),
    [("short", "short"), ("\n  what is wrong\nand where", "what is wrong"), (" \n", "ValueError"), ("", "ValueError")],
)
def test_the_first_line_that_says_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("net=x is unknown.\nweights_path=y: no file.", "a.b.net=x is unknown.\na.b.weights_path=y: no file."),
        (
            "No weights: give weights_path=PATH, or weight=0.",
            "No weights: give a.b.weights_path=PATH, or a.b.weight=0.",
        ),
        ("Run `python -m tae.weights get=vgg`.", "Run `python -m tae.weights get=vgg`."),
        ("other=1 begins a line, and is_weight=1 does not.", "a.b.other=1 begins a line, and is_weight=1 does not."),
        ("Set data.weight=2.", "Set data.weight=2."),
    ],
)
def test_arguments_are_named_by_their_keys(message: str, told: str) -> None:
    assert with_full_keys(message, "a.b", ["net", "weight", "weights_path"]) == told

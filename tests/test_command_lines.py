"""Command lines through the real program: what composing in Python accepts, Hydra's command line may take otherwise."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tae.runtime.commands import COMMANDS
from tests import test_docs

ROOT = Path(__file__).parents[1]
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
# Lets each command print the config that a command line gives, and tells of those that end otherwise.
PROGRAM = """
import contextlib, importlib, io, json, sys

failed = {}
for module, arguments in json.load(sys.stdin):
    sys.argv = [module, *arguments, "--cfg", "job"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            importlib.import_module(module).main()
        except (Exception, SystemExit) as end:
            failed[" ".join(sys.argv)] = f"{out.getvalue()[:600]} {end!r}"
print(json.dumps(failed))
"""


def failures(calls: Sequence[tuple[str, Sequence[str]]], folder: Path) -> dict[str, str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(calls), cwd=folder, env=environment,
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def own_settings(command: str) -> list[str]:
    """Every setting of a command given on its command line: a value of its own, or a text where it has none."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(compose(command), resolve=False)
    given = []
    for key, value in leaves(config):
        if "${" in str(value) or "_target_" in str(value):  # values that nobody gives on a command line
            continue
        if (command, key) == ("train", "scheduler"):  # a group of its own, with nothing in it
            continue
        if value is None or value == "???":
            value = "tcp://host:8786"
        given.append(f"{key}={json.dumps(value) if isinstance(value, str) else OmegaConf.create([value])[0]}")
    return given


@pytest.mark.parametrize("command", COMMANDS)
def test_no_setting_has_the_name_of_a_group(command: str) -> None:
    """Hydra takes `scheduler=tcp://...` for a choice of the group, whether the command uses it or not."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(command, return_hydra_config=True)
    used = {name for name in config.hydra.runtime.choices if name in GROUPS}
    settings = {str(name) for name in config if not OmegaConf.is_dict(config._get_node(name))}
    assert settings & GROUPS <= used


def test_every_setting_of_every_command_can_be_given(tmp_path: Path) -> None:
    calls = [(COMMANDS[command][0], own_settings(command)) for command in COMMANDS]
    assert all(arguments for _, arguments in calls)
    assert failures(calls, tmp_path) == {}


def runs(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The command line of each run of a sweep: --cfg and -m exclude one another."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [str(one.input_line)]
        for one in parsed
    ]
    return list(itertools.product(*choices))


def test_every_command_line_of_the_pages_is_taken_by_its_program(tmp_path: Path) -> None:
    documented = [one for one in dict.fromkeys(test_docs.COMMANDS + test_docs.MENTIONED) if one.entry]
    assert len(documented) > 40
    calls = [
        (COMMANDS[one.entry][0], run) for one in documented
        for run in (runs(one.overrides) if one.entry != "weights" else [tuple(one.overrides)])
    ]  # fmt: skip
    assert failures(list(dict.fromkeys(calls)), tmp_path) == {}

"""Command lines through the real program: what composing in Python accepts, Hydra's command line may take otherwise."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tae.runtime.cli import Program
from tae.runtime.commands import COMMANDS
from tests import documented, test_startup

ROOT = Path(__file__).parents[1]
GROUPS = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
# Lets each command print the config that a command line gives, and tells of those that end otherwise or lack a value.
PROGRAM = """
import contextlib, importlib, io, json, sys

failed = {}
for module, arguments in json.load(sys.stdin):
    sys.argv = [module, *arguments, "--cfg", "job", "--resolve"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            importlib.import_module(module).main()
        except (Exception, SystemExit) as end:
            failed[" ".join(sys.argv)] = f"{out.getvalue()[:600]} {end!r}"
    if "???" in out.getvalue():
        failed[" ".join(sys.argv)] = out.getvalue()
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
        # What `train` adds where no group is chosen, as here.
        added = ["experiment=demo"] if command == "train" else []
        config = OmegaConf.to_container(compose(command, added), resolve=False)
    given = []
    for key, value in leaves(config):
        if "${" in str(value) or "_target_" in str(value):  # values that nobody gives on a command line
            continue
        if value is None and key in GROUPS:  # a choice with nothing in it
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
    listed = [one for one in dict.fromkeys(documented.COMMANDS + documented.MENTIONED) if one.entry]
    assert len(listed) > 40
    calls = [
        (COMMANDS[one.entry][0], run) for one in listed
        for run in (runs(one.overrides) if one.entry != "weights" else [tuple(one.overrides)])
    ]  # fmt: skip
    assert failures(list(dict.fromkeys(calls)), tmp_path) == {}


def of_help(command: str) -> str:
    """What `--help` says before it lists all settings."""
    return test_startup.helps()[0][f"tae-{command} --help"].partition("== All settings")[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_settings_that_matter(command: str) -> None:
    """Five, or all where a command has fewer; settings or groups of its own, in lines of 100 columns."""
    what, _, rest = of_help(command).partition("\n\nSettings that matter most:\n")
    named = re.findall(r"^  ([\w.]+)  +\S", rest, re.MULTILINE)
    assert len(named) == min(5, len(own_settings(command)))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(command, return_hydra_config=True)
    keys = [key for key, _ in leaves(OmegaConf.to_container(config, resolve=False))]
    groups = config.hydra.runtime.choices
    known = {*groups, *(key[: dot.start()] for key in keys for dot in re.finditer(r"\.|$", key))}
    assert set(named) <= known
    assert max(len(line) for line in f"{what}\n{rest.partition('==')[0]}".splitlines()) <= 100


def test_the_example_of_every_help_is_taken_by_its_program(tmp_path: Path) -> None:
    calls = []
    for command in COMMANDS:
        (example,) = re.findall(rf"^  tae-{command} (.+)", of_help(command).partition("\nExample:\n")[2], re.MULTILINE)
        calls.append((COMMANDS[command][0], shlex.split(example)))
    assert failures(calls, tmp_path) == {}


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        (Program("train.py", None), "python train.py"),
        (Program(str(ROOT / "tae" / "encode.py"), "tae.encode"), "python -m tae.encode"),
        (Program("/data/synthetic/__main__.py", "data.synthetic.__main__"), "python -m data.synthetic"),
        (Program("/usr/bin/tae-encode", None), "tae-encode"),
        (Program("/Scripts/tae-encode.exe", None), "tae-encode"),
    ],
)
def test_help_calls_a_command_as_it_is_typed(program: Program, typed: str) -> None:
    assert program.typed == typed

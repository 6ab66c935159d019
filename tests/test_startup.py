"""What a command imports before it answers: counted, since times depend on the machine (benchmarks/startup.py has them)."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence, Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each costs seconds, or pulls in one that does.
HEAVY = {
    "av",
    "decord",
    "lightning",
    "lpips",
    "matplotlib",
    "numpy",
    "scipy",
    "torch",
    "torchmetrics",
    "torchvision",
    "wandb",
    "webdataset",
}
COMMANDS = {path.stem for path in (ROOT / "conf").glob("*.yaml")}
# Imports every command, lets each answer `arguments`, and tells what was imported meanwhile.
PROGRAM = """
import contextlib, importlib, io, json, sys

answers = {}
for name, module, arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            importlib.import_module(module).main()
        except SystemExit as end:
            print("exit", end.code)
    answers[f"{name} {' '.join(arguments)}"] = out.getvalue()
print(json.dumps({"answers": answers, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def module_of(command: str) -> str:
    if (ROOT / "tae" / f"{command}.py").is_file():
        return f"tae.{command}"
    return "data.synthetic.__main__" if command == "synthetic" else f"data.{command}"


def python(*arguments: str, cwd: Path = ROOT) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def let_answer(arguments: Sequence[str], names: Set[str], folder: Path) -> tuple[dict[str, str], set[str]]:
    """What each command prints, by its command line as a console script, and the modules that all of them import."""
    calls = [(f"tae-{name}", module_of(name), arguments) for name in sorted(names)]
    told = json.loads(python("-c", PROGRAM, json.dumps(calls), cwd=folder).splitlines()[-1])
    return told["answers"], set(told["modules"])


@cache
def helps() -> tuple[dict[str, str], set[str]]:
    return let_answer(["--help"], COMMANDS, ROOT)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--help"], "== All settings"),
        (["--cfg", "job"], ":"),
        (["no_such_key=1"], "no_such_key"),
        (["hydra.run.dir=.", "hydra.output_subdir=null"], "has no default: give "),
    ],
    ids=["help", "config", "typo", "missing"],
)
def test_a_command_answers_before_anything_heavy_is_imported(arguments: list[str], answer: str, tmp_path: Path) -> None:
    """A setting that is missing too; the commands that need none would begin their work."""
    names = (
        {"encode", "export", "prepare", "reconstruct", "verify", "index", "inspect"}
        if "default" in answer
        else COMMANDS
    )
    answers, modules = helps() if arguments == ["--help"] else let_answer(arguments, names, tmp_path)
    assert len(answers) == len(names)
    assert {call: text for call, text in answers.items() if answer not in text} == {}
    assert not HEAVY & modules


def test_importing_the_package_imports_nothing_but_itself() -> None:
    added = python("-c", "import sys; before = set(sys.modules); import tae; print(*set(sys.modules) - before)").split()
    assert {name.partition(".")[0] for name in added} <= {"tae"} | sys.stdlib_module_names


def test_a_public_name_is_imported_on_use_and_the_list_is_whole() -> None:
    import tae

    assert set(tae.__all__) == {name for names in tae._HOMES.values() for name in names}
    for name in tae.__all__:
        assert getattr(tae, name).__name__ == name
        assert name in dir(tae)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tae.no_such_name
    program = (
        "import sys; from tae import TemporalAutoencoder; "
        "TemporalAutoencoder.from_pretrained('tiny'); print(*{name.partition('.')[0] for name in sys.modules})"
    )
    used = set(python("-c", program).split())
    assert not used & (HEAVY - {"torch", "numpy"} | {"hydra", "omegaconf", "triton"})

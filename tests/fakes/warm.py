"""Commands without their start: a process that has imported Lightning and the metrics once, and forks for each of them.

Importing takes most of a short command's time. That commands do work from nothing, and how fast they start, is tested with
real processes elsewhere (`tests/test_startup.py`, `tests/test_installed.py`).
"""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_warm(
    arguments: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments])` gives, of `SCRIPT ...` or `-m MODULE ...`, output as text."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "out": str(out), "err": str(err)}
        answer = _ask(server, request | {"env": dict(os.environ if env is None else env), "timeout": timeout})
        if answer == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(list(arguments), timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(list(arguments), answer, out.read_text(), err.read_text())


@cache
def _server() -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.warm"], cwd=ROOT, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.kill)
    return server


def _ask(server: subprocess.Popen[str], request: Mapping[str, Any]) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def serve() -> None:
    """Answer requests with exit codes; returns in a forked child when its command has ended."""
    import tae.evaluation.run
    import tae.training.run  # noqa: F401

    for line in sys.stdin:
        if (child := os.fork()) == 0:
            become(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(request: Mapping[str, Any]) -> None:
    """Be the process that was asked for."""
    signal.alarm(request["timeout"])  # whose default action ends it
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for path, descriptor in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.path[1:1] = [entry for entry in request["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    program, *rest = request["arguments"]
    if program == "-m":
        module, *rest = rest
        sys.argv, sys.path[0] = [module, *rest], request["cwd"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        script = Path(program).resolve()
        sys.argv, sys.path[0] = [program, *rest], str(script.parent)
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    serve()

"""CPU seconds until a command has answered what needs no work: `--help`, `--cfg job`, a typo, a missing source.

    python -m benchmarks.startup

Beside them, from the same run, what `import torch` and `import tae` take. CPU seconds of the whole process, user and
system, in rounds over all of them: wall time would measure what else the machine does, and CPU seconds grow by that too.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, publish, spread
from tae.runtime.commands import COMMANDS

ROOT = Path(__file__).parents[1]
ANSWERS = {"--help": ["--help"], "--cfg job": ["--cfg", "job"], "typo": ["no_such_key=1"], "nothing given": []}
# The others would begin their work.
NEEDS_SOURCE = {
    "encode",
    "export",
    "index",
    "inspect",
    "prepare",
    "reconstruct",
    "verify",
}


def cpu_seconds(arguments: Sequence[str], fails: bool, folder: Path) -> float:
    """CPU seconds of one Python process, from its start to its end.

    Raises:
        RuntimeError: it ended otherwise than it should.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if (done.returncode != 0) != fails or "Traceback" in done.stderr:
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-600:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def calls(commands: Sequence[str]) -> dict[tuple[str, str], tuple[list[str], bool]]:
    """By row and column of the table: the arguments of Python, and whether it has to fail."""
    found = {(f"import {name}", "import"): (["-c", f"import {name}"], False) for name in ("torch", "tae")}
    for command in commands:
        for answer, arguments in ANSWERS.items():
            if answer != "nothing given" or command in NEEDS_SOURCE:
                module = ["-m", COMMANDS[command][0].removesuffix(".__main__")]
                found[command, answer] = ([*module, *arguments], not arguments or "=" in arguments[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=sorted(COMMANDS), default=sorted(COMMANDS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the table has medians")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    wanted = calls(arguments.commands)
    times: dict[tuple[str, str], list[float]] = {place: [] for place in wanted}
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for place, (command, fails) in wanted.items():
                times[place].append(cpu_seconds(command, fails, Path(folder)))
    load.append(os.getloadavg()[0])
    rows: list[dict[str, Any]] = []
    for row in dict.fromkeys(row for row, _ in wanted):
        columns = {column: times.get((row, column)) for column in ("import", *ANSWERS)}
        rows.append({"CPU seconds": row, **{name: spread(t)["median"] if t else None for name, t in columns.items()}})
    settings = {"repeats": arguments.repeats, "load before and after": " and ".join(f"{one:.1f}" for one in load)}
    publish("startup", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

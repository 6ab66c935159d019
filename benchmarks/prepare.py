"""Files a second that `data.prepare` checks and writes, by the number of worker processes.

    python -m benchmarks.prepare --source UCF-101/ --workers 1 2

Every run prepares the whole source into a new folder, from starting the first worker to the last shard; what the
command itself takes to start is not timed. Reading is from a warm page cache.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, interleaved, publish, spread
from data.pool import Crew
from data.prepare import prepare


def prepare_anew(source: Path, workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare(
            "folder", source, Path(folder) / "shards", split="none", splits_dir=None, test=0.0, val=0.0, seed=0,
            timeout=300, shard_mb=256, encoding=None, crew=Crew(workers=workers),
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    files = [path for path in arguments.source.rglob("*") if path.is_file()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    ways: dict[str, Callable[[], None]] = {
        str(workers): partial(prepare_anew, arguments.source, workers) for workers in arguments.workers
    }
    times = interleaved(ways, "cpu", warmup=arguments.warmup, repeats=arguments.repeats)
    single = spread(times["1"])["median"] if "1" in times else None
    return [
        {
            "workers": int(workers),
            "files": len(files),
            "MB": megabytes,
            "seconds": (found := spread(seconds))["median"],
            "p25": found["p25"],
            "p75": found["p75"],
            "files/s": len(files) / found["median"],
            "times one worker": single / found["median"] if single else None,
        }
        for workers, seconds in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--warmup", type=int, default=1, help="runs before the timed ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.load_before = round(os.getloadavg()[0], 1)
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "source")}
    publish("prepare", "cpu", settings | {"source": arguments.source.name}, rows, arguments.output)


if __name__ == "__main__":
    main()

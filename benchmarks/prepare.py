"""Files a second that `data.prepare` checks and writes, by the number of workers and of cores that they may use.

    python -m benchmarks.prepare --source UCF-101/ --workers 2

Every run prepares the whole source into a new folder, from starting the workers to the last shard. What python takes
to start and to import is not timed; reading is from a warm page cache. A single worker is measured on one core and on
all: decord decodes in a thread beside the one that asks, so that a worker alone fills more than one core.
"""

import argparse
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, publish, seconds, spread
from data.ingest.pipeline import prepare
from data.processes.pool import Engine, run_isolated


def prepare_on(cores: int, workers: int, source: Path) -> float:
    """Seconds of a preparation; in a process of its own, because its fork server keeps the cores that it began with."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    engine = Engine(workers=workers)
    list(run_isolated(len, ["start the fork server"], 60, engine))
    with tempfile.TemporaryDirectory() as folder:
        return seconds(
            lambda: prepare(
                "folder", source, Path(folder) / "shards", split="none", splits_dir=None, test=0.0, val=0.0, seed=0,
                timeout=300, shard_mb=256, encoding=None, engine=engine,
            ),
            "cpu",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    files = [path for path in arguments.source.rglob("*") if path.is_file()]
    available = len(os.sched_getaffinity(0))
    ways = dict.fromkeys([(1, 1), (available, 1), *((min(n, available), n) for n in arguments.workers)])
    times: dict[tuple[int, int], list[float]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):  # in rounds, so that a busy moment of the machine hits all alike
        for (cores, workers), found in times.items():
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                found.append(alone.submit(prepare_on, cores, workers, arguments.source).result())
    single = spread(times[1, 1])["median"]
    return [
        {
            "cores": cores,
            "workers": workers,
            "files": len(files),
            "MB": sum(path.stat().st_size for path in files) / 1e6,
            "seconds": (measured := spread(found))["median"],
            "p25": measured["p25"],
            "p75": measured["p75"],
            "files/s": len(files) / measured["median"],
            "times one worker on one core": single / measured["median"],
        }
        for (cores, workers), found in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=(2,), help="each on as many cores, if there are")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.load_before = round(os.getloadavg()[0], 1)  # other work on the same cores spoils every rate
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "source")}
    publish("prepare", "cpu", settings | {"source": arguments.source.name}, rows, arguments.output)


if __name__ == "__main__":
    main()

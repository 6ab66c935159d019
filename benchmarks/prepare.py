"""Files a second that `data.prepare` checks and writes, by workers and cores, and the memory of its main process.

    python -m benchmarks.prepare --source UCF-101/ --workers 2
    python -m benchmarks.prepare --images 10000 100000

Every run prepares the whole source into a new folder, from starting the workers to the last shard. What python takes
to start and to import is not timed; reading is from a warm page cache. A single worker is measured on one core and on
all: decord decodes in a thread beside the one that asks, so that a worker alone fills more than one core. Processor
time is that of the workers; other work on the machine lengthens the seconds, not the processor's.

With --images the source is so many pictures of 8 x 8 pixels, as they are quick to check; memory is the peak of the main
process above what it has after imports, the kernel's high-water mark.
"""

import argparse
import io
import os
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, publish, seconds, spread
from data.ingest.pipeline import prepare
from data.processes.pool import Engine, run_isolated


def prepare_on(cores: int, workers: int, source: Path, dataset: str = "folder") -> tuple[float, float, float]:
    """Seconds of a preparation, of its workers' processor time, and MB of memory that this process needs for it.

    In a process of its own, because its fork server keeps the cores that it began with.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    engine = Engine(workers=workers)
    list(run_isolated(len, ["start the fork server"], 60, engine))
    before, memory = _processor_time(), _peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        wall = seconds(
            lambda: prepare(
                dataset, source, Path(folder) / "shards", split=None, splits_dir=None, test=0.2, val=0.0, seed=0,
                timeout=300, shard_mb=256, encoding=None, engine=engine,
            ),
            "cpu",
        )  # fmt: skip
    return wall, _processor_time() - before, (_peak_memory() - memory) / 1e6


def _processor_time() -> float:
    """Seconds that the workers have used which have ended: the fork server has waited for them."""
    from multiprocessing import forkserver

    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(*arguments: Any) -> tuple[float, float, float]:
    """`prepare_on` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(prepare_on, *arguments).result()


def measure_workers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of workers."""
    files = [path for path in arguments.source.rglob("*") if path.is_file()]
    available = len(os.sched_getaffinity(0))
    ways = dict.fromkeys([(1, 1), (available, 1), *((min(n, available), n) for n in arguments.workers)])
    times: dict[tuple[int, int], list[tuple[float, float, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):  # in rounds, so that a busy moment of the machine hits all alike
        for (cores, workers), found in times.items():
            found.append(alone(cores, workers, arguments.source))
    single = spread([wall for wall, _, _ in times[1, 1]])["median"]
    rows = []
    for (cores, workers), found in times.items():
        measured = spread([wall for wall, _, _ in found])
        ratios = [first[0] / own[0] for first, own in zip(times[1, 1], found, strict=True)]
        rows.append(
            {
                "cores": cores,
                "workers": workers,
                "files": len(files),
                "MB": sum(path.stat().st_size for path in files) / 1e6,
                "seconds": measured["median"],
                "p25": measured["p25"],
                "p75": measured["p75"],
                "processor (s)": spread([processor for _, processor, _ in found])["median"],
                "files/s": len(files) / measured["median"],
                "times one worker on one core": single / measured["median"],
                "the same, round by round": " ".join(f"{ratio:.2f}" for ratio in ratios),
            }
        )
    return rows


def measure_memory(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of files."""
    rows = []
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                path = Path(folder) / f"{number // 1000:05d}" / f"{number:08d}.png"
                if number % 1000 == 0:
                    path.parent.mkdir()
                picture = np.zeros((8, 8, 3), np.uint8)
                picture[0, 0] = number % 256, number // 256 % 256, number // 65536
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "PNG", compress_level=1)
                path.write_bytes(file.getvalue())
            workers = max(arguments.workers)
            wall, processor, memory = alone(workers, workers, Path(folder), "images")
        rows.append(
            {
                "files": count,
                "workers": workers,
                "seconds": wall,
                "processor (s)": processor,
                "memory of the main process (MB)": memory,
                "bytes a file": memory * 1e6 / count,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", type=Path)
    source.add_argument("--images", type=int, nargs="+")
    parser.add_argument("--workers", type=int, nargs="+", default=(2,), help="each on as many cores, if there are")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.load_before = round(os.getloadavg()[0], 1)  # other work on the same cores spoils every rate
    rows = measure_memory(arguments) if arguments.images else measure_workers(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "source")}
    settings |= {"source": arguments.source.name} if arguments.source else {}
    publish("prepare_memory" if arguments.images else "prepare", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

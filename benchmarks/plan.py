"""What planning an epoch costs, by the number of clips: setup of a rank, the first clips of a worker, the loader's state.

    python -m benchmarks.plan

Indexes of version 2 are made for shards that are empty files of the right size; nothing is decoded. Memory is what a
process has for itself (USS) or its share of what several have in common (PSS), above the imports. Seconds are of the
processor, as there are more processes than cores.
"""

import argparse
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.common import RESULTS, publish
from data.loading.faults import FaultPolicy
from data.loading.loader import ClipLoader
from data.loading.stream import plan_part
from data.sampling.order import EpochOrder, Layout
from data.sampling.table import ClipTable
from data.sampling.types import Sampling, Window
from data.shards.index import find_shards
from data.shards.index_writer import write_table
from data.shards.table import Selection, select

CLIPS_PER_SHARD = 1_000
SHARD_BYTES = 1_000_000_000
WINDOW = Window(32, 1, 256)
BUFFER = 256
CONTEXT = multiprocessing.get_context("fork")  # so that the imports are there, and cost nothing


class Barriers(NamedTuple):
    """Where all processes wait for one another."""

    planned: Any
    measured: Any


def make_index(folder: Path, clips: int) -> None:
    """Shards of nothing, and an index of so many samples, a few of them shorter than a window."""
    count = clips // CLIPS_PER_SHARD
    names = [f"shard-{number:06d}.tar" for number in range(count)]
    for name in names:
        with (folder / name).open("wb") as file:
            os.truncate(file.fileno(), SHARD_BYTES)
    shards = [
        {"name": n, "samples": CLIPS_PER_SHARD, "bytes": SHARD_BYTES, "sha256": f"{i:064x}"}
        for i, n in enumerate(names)
    ]
    kinds = {"frames": "uint32", "key": "string", "offset": "int64", "fps": "float64"}

    def rows() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        alike = {
            "key": [f"clip_of_some_video_{i:04d}" for i in range(CLIPS_PER_SHARD)],
            "offset": np.arange(CLIPS_PER_SHARD) * (SHARD_BYTES // CLIPS_PER_SHARD),
            "fps": np.full(CLIPS_PER_SHARD, 29.97),
        }
        for _ in range(count):
            yield {"frames": rng.integers(30, 500, CLIPS_PER_SHARD)} | alike

    write_table(folder, {"split": "train", "recipe": {}}, shards, kinds, rows())


def set_up(folder: Path) -> ClipTable:
    """What a rank does before its workers start."""
    shards = find_shards(str(folder / "shard-*.tar"), "shards")
    selection = Selection(WINDOW.num_frames)
    return ClipTable(shards, select(shards, selection).counts, selection)


def first_clips(clips: ClipTable, layout: Layout, worker: int) -> list[Any]:
    """What a worker plans before it reads its first batches."""
    order = EpochOrder(clips.counts, 0, 0)
    part = layout.part(len(order), worker)
    return list(islice(plan_part(clips, order, part, np.zeros(len(part), bool)), BUFFER))


def memory(kind: str) -> float:
    return getattr(psutil.Process().memory_full_info(), kind) / 1e6


def rank(folder: Path, layout: Layout, everybody: Barriers, queue: Any) -> None:
    """A rank and its workers, which get the clips by pickle as training's do; each says what it took."""
    ends = [CONTEXT.Pipe() for _ in range(layout.num_workers)]
    workers = [
        CONTEXT.Process(target=work, args=(theirs, layout, number, everybody, queue))
        for number, (_, theirs) in enumerate(ends)
    ]
    for worker in workers:
        worker.start()
    before, started = {kind: memory(kind) for kind in ("uss", "pss")}, time.process_time()
    clips = set_up(folder)
    loader = ClipLoader(
        name="train", clips=clips, sampling=Sampling(WINDOW, 1, BUFFER), faults=FaultPolicy(0.01, folder),
        num_workers=layout.num_workers,
    )  # fmt: skip
    taken = {"setup (s)": time.process_time() - started}
    for name in ("first state (s)", "next state (s)"):
        started = time.process_time()
        state = loader.state_dict()
        taken[name] = time.process_time() - started
    taken |= {"state (bytes)": len(pickle.dumps(state)), "sent to a worker (bytes)": len(pickle.dumps(clips))}
    for ours, _ in ends:
        ours.send(clips)
    everybody.planned.wait()
    queue.put(
        taken | {"own of a rank (MB)": memory("uss") - before["uss"], "share (MB)": memory("pss") - before["pss"]}
    )
    everybody.measured.wait()
    for worker in workers:
        worker.join()


def work(clips_from: Any, layout: Layout, number: int, everybody: Barriers, queue: Any) -> None:
    """A worker."""
    before = memory("pss")
    clips = clips_from.recv()
    started = time.process_time()
    first_clips(clips, layout, number)
    taken = time.process_time() - started
    everybody.planned.wait()
    queue.put({"first clips of a worker (s)": taken, "share (MB)": memory("pss") - before})
    everybody.measured.wait()


def measure(count: int, ranks: int, workers: int) -> dict[str, Any]:
    """One row: `ranks` processes with `workers` each over so many clips; the worst of all, and what they hold together."""
    parties = ranks * (1 + workers)
    everybody, queue = Barriers(CONTEXT.Barrier(parties), CONTEXT.Barrier(parties + 1)), CONTEXT.Queue()
    with tempfile.TemporaryDirectory() as name:
        make_index(Path(name), count)
        layouts = [Layout(number, ranks, workers) for number in range(ranks)]
        processes = [CONTEXT.Process(target=rank, args=(Path(name), layout, everybody, queue)) for layout in layouts]
        for process in processes:
            process.start()
        found = [queue.get() for _ in range(parties)]
        everybody.measured.wait()
        for process in processes:
            process.join()
    worst = {key: max(each[key] for each in found if key in each) for key in dict.fromkeys(k for f in found for k in f)}
    del worst["share (MB)"]
    return {"clips": count} | worst | {"all processes (MB)": sum(each["share (MB)"] for each in found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=(10**5, 10**6, 10**7, 10**8))
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=6, help="of each rank")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = [measure(clips, arguments.ranks, arguments.workers) for clips in arguments.clips]
    settings = {"ranks": arguments.ranks, "workers of each": arguments.workers}
    publish("data_plan", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()

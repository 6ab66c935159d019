"""Thousands of damaged shards and indexes: each is refused with a clear message, or what it costs is skipped and counted.

python -m pytest -s -m slow tests/data/loading/test_fuzz.py    10,000 cases; figures are printed
"""

from collections import Counter
from concurrent.futures import TimeoutError as CaseTimeout
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pebble import ProcessExpired, ProcessPool

from data.drawing import draw_clip, encode_mp4
from data.processes.workers import worker_context
from data.shards.writer import ShardWriter
from tests.fakes.mutations import read

CASE_SECONDS = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of three tiny clips."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    with ShardWriter(folder, "test", {"seed": 0}, shard_bytes=25_000) as writer:
        for number in range(9):
            video = encode_mp4(draw_clip(rng, 4, 32, 44))
            writer.write(f"clip{number}", "mp4", video, {"num_frames": 4, "fps": 24.0})
    assert len(list(folder.glob("*.tar"))) >= 2
    return folder


def run_cases(folder: Path, first: int, count: int, workers: int) -> Counter[str]:
    """Outcomes of the cases. A decoder that ends its process does so in a worker of the loader, the second time."""
    shards = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    run = partial(read, shards, (folder / "index.json").read_bytes())
    outcomes: Counter[str] = Counter()
    lethal = []
    with ProcessPool(max_workers=workers, context=worker_context()) as pool:
        numbers = range(first, first + count)
        results = pool.map(partial(run, num_workers=0), numbers, timeout=CASE_SECONDS).result()
        for number in numbers:
            try:
                outcomes[next(results)] += 1
            except (CaseTimeout, ProcessExpired):
                lethal.append(number)
            except Exception as error:
                raise AssertionError(f"case {number}: {error!r}") from error
    for number in lethal:
        outcomes["ended a worker, " + run(number, num_workers=1)] += 1
    return outcomes


def check(outcomes: Counter[str], count: int) -> None:
    print(f"\n{count} damaged folders: " + ", ".join(f"{number} {name}" for name, number in outcomes.most_common()))
    assert outcomes.total() == count
    assert outcomes["refused"] > count / 10
    assert outcomes["skipped"] > count / 5  # the mutations do reach the reader


def test_some_damaged_shards_and_indexes(folder: Path) -> None:
    check(run_cases(folder, 0, 30, workers=1), 30)  # starting a second one takes longer than the cases


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_damaged_shards_and_indexes(folder: Path) -> None:
    check(run_cases(folder, 1000, 10_000, workers=2), 10_000)

"""The same work on this machine and on a cluster; a crash or a hang costs one task in both."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import data.processes.pool
from data.drawing import draw_clip, encode_mp4
from data.processes.pool import Engine, Failure, run_isolated
from tae.runtime.errors import UserError
from tests.data.ingest.test_prepare import contents, run
from tests.fakes.faults import hang_or_die

TASKS = [Path(name) for name in ("a", "hangs", "b", "dies", "c", "raises")]
RESULTS = dict.fromkeys(map(Path, "abc"), "checked") | {
    Path("hangs"): Failure("took more than 4 s"),
    Path("dies"): Failure("ended the process (exit code 7)"),
    Path("raises"): Failure("failed: ZeroDivisionError: raises"),
}


def test_a_hang_or_a_crash_costs_one_file() -> None:
    assert dict(run_isolated(hang_or_die, TASKS, 4.0, Engine(workers=1))) == RESULTS


def test_tasks_are_taken_as_they_are_needed_and_may_be_left() -> None:
    """An endless row of them is no problem, and to stop in the middle ends the children."""
    running = run_isolated(hang_or_die, (Path("a") for _ in itertools.count()), 4.0, Engine(workers=2))
    assert [result for _, result in itertools.islice(running, 20)] == ["checked"] * 20
    running.close()
    assert data.processes.pool._pool is None


def test_a_crew_that_cannot_be_is_refused() -> None:
    for match, arguments in {
        "engine=ray is unknown": ("ray", None, None),
        "do not go together": ("dask", None, None),
        "workers=0": ("local", 0, None),
        "tcp://127.0.0.1:1: ": ("dask", None, "tcp://127.0.0.1:1"),
    }.items():
        with pytest.raises(UserError, match=match):
            list(run_isolated(hang_or_die, TASKS, 4.0, Engine(*arguments, connect_timeout=1)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # distributed closes its sockets when it pleases
def test_a_cluster_of_two_workers_does_the_same(tmp_path: Path) -> None:
    """Time limit and isolation hold there, and the shards are the same bytes."""
    from distributed import LocalCluster

    for number in range(6):
        clip = encode_mp4(draw_clip(np.random.default_rng(number), 12, 32, 44))
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(clip)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        engine = Engine("dask", dask_address=cluster.scheduler_address)
        assert dict(run_isolated(hang_or_die, TASKS, 4.0, engine)) == RESULTS
        run(tmp_path / "videos", tmp_path / "cluster", engine=engine)
    run(tmp_path / "videos", tmp_path / "here")
    assert contents(tmp_path / "cluster") == contents(tmp_path / "here")

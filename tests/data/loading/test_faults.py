"""How many clips may fail: over all, lately, and what a checkpoint keeps of it."""

import json
from pathlib import Path

import pytest

from data.loading.faults import JUDGED_FROM, FaultCount, FaultPolicy
from tae.runtime.errors import UserError


def faults(shard: str, count: int) -> list[dict[str, str]]:
    return [{"key": str(number), "shard": shard, "reason": "broken"} for number in range(count)]


@pytest.fixture
def count(tmp_path: Path) -> FaultCount:
    """After a long and good past."""
    count = FaultCount("train", FaultPolicy(0.01, tmp_path))
    count.add(1_000_000, [])
    return count


def test_an_outage_is_noticed_within_the_recent_past(count: FaultCount) -> None:
    for number in range(JUDGED_FROM // 50):
        count.add(0, faults(f"s{number}", 10))
        if number > 5:
            break
        count.check() if number < 3 else None
    with pytest.raises(UserError, match="of the last 1000 clips of train could not be decoded, from 7 shards"):
        count.check()


def test_one_damaged_shard_is_no_outage(count: FaultCount) -> None:
    count.add(0, faults("damaged", 500))
    count.add(100, faults("other", 3))
    count.check()


def test_what_is_allowed_in_all_is_allowed_lately_too(count: FaultCount) -> None:
    """A steady share just below the limit never ends a run, whatever chance does with a thousand clips."""
    for number in range(200):
        count.add(93, faults(f"s{number}", 1 if number % 7 else 3))
        count.check()


def test_too_many_in_all_end_the_training(tmp_path: Path) -> None:
    count = FaultCount("train", FaultPolicy(0.01, tmp_path))
    count.add(JUDGED_FROM - 12, faults("s", 11))
    count.check()  # not judged yet
    count.add(1, [])
    with pytest.raises(UserError, match=r"11 of 1000 clips of train could not be decoded \(1\.1%\)"):
        count.check()


def test_its_state_is_bounded_and_goes_on(count: FaultCount, tmp_path: Path) -> None:
    for number in range(3000):
        count.add(9, faults(f"s{number}", 1))
    state = json.loads(json.dumps(count.state_dict()))
    assert len(json.dumps(state)) < 1_000
    resumed = FaultCount("train", FaultPolicy(0.01, tmp_path))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == count.state_dict()
    assert (resumed.taken, resumed.failed) == (1_030_000, 3000)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3000


def test_its_state_is_small_when_everything_fails(tmp_path: Path) -> None:
    """And each failure is still of its own shard and time."""
    count = FaultCount("train", FaultPolicy(1.0, tmp_path))
    for number in range(3000):
        count.add(0, faults(f"s3://bucket/a/long/name/shard-{number:06d}.tar", 1))
    assert len(json.dumps(count.state_dict())) < 9_000
    resumed = FaultCount("train", FaultPolicy(0.01, tmp_path))
    resumed.load_state_dict(json.loads(json.dumps(count.state_dict())))
    resumed.failed = 0  # so that the recent past alone counts
    with pytest.raises(UserError, match=r"1000 of the last 1000 clips .* from 1000 shards"):
        resumed.check()


def test_a_state_that_lists_shards_by_name_is_read(count: FaultCount) -> None:
    state = {"taken": 2_000, "failed": 200, "recent": [[1_900 + number // 2, f"s{number}"] for number in range(200)]}
    count.load_state_dict(state)
    count.failed = 0
    with pytest.raises(UserError, match="of the last 1000 clips of train could not be decoded, from 200 shards"):
        count.check()

"""The operations of a training step are counted, and stay as few as they are."""

from benchmarks.dispatches import count_step, row

MOST = 6900  # of the reference's network with checkpointing, without LPIPS; a view more in each convolution is 500


def test_a_step_of_the_reference_takes_no_more_operations() -> None:
    parts = count_step("sd35", checkpointing=True, lpips=False)
    rows = [row(part, names) for part, names in parts.items()]
    assert all(found["operations"] > 0 and found["others"] >= 0 for found in rows)
    assert sum(found["operations"] for found in rows) <= MOST

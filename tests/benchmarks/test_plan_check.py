"""The comparison of plan and measure fails where it should, and takes the cases that are named."""

import pytest

from benchmarks.plan_check import BOUND, CASES, check_bound, choose


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_plan_beyond_the_bound_fails(sign: int) -> None:
    within, beyond = (
        {"case": f"case {factor}", "task": "decoding", "planned / measured": 1 + sign * factor * BOUND}
        for factor in (0.99, 1.01)
    )
    check_bound([within])
    with pytest.raises(SystemExit, match=r"case 1\.01, decoding") as failure:
        check_bound([within, beyond])
    assert "case 0.99" not in str(failure.value)
    with pytest.raises(SystemExit):
        check_bound([within | {"planned / measured": float("nan")}])


def test_cases_are_chosen_by_a_part_of_their_overrides() -> None:
    cases = CASES["full"]
    assert choose(cases, []) == cases
    assert choose(cases, ["fp32", "num_frames=1 "]) == [cases[3], cases[5]]
    with pytest.raises(SystemExit, match="tpu"):
        choose(cases, ["tpu"])

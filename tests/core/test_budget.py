"""A budget of work: what is within it costs no time, what is over it has to rest, who goes on fails."""

from __future__ import annotations

import math

import pytest

from autoforward.core.budget import Budget, Limit, OverBudgetError

pytestmark = pytest.mark.unit

SLOWED = Limit("things", rate=10, burst=100)
FAILING = Limit("things", rate=10, burst=100, patience_s=5)


def test_a_burst_is_free_and_what_is_over_it_is_rested_for() -> None:
    budget = Budget(SLOWED, 0.0)
    assert [budget.spend(10, 0.0) for _ in range(10)] == [0.0] * 10
    assert budget.spend(5, 0.0) == 0.5
    assert budget.rest_s(0.25) == 0.25
    assert budget.rest_s(0.5) == 0.0


def test_time_fills_it_up_to_the_burst_and_so_do_earnings() -> None:
    budget = Budget(SLOWED, 0.0)
    budget.spend(100, 0.0)
    budget.earn(30)
    assert budget.spend(30, 0.0) == 0.0
    budget.earn(1000)
    assert budget.spend(100, 1000.0) == 0.0
    assert budget.spend(10, 1000.0) == 1.0


def test_work_at_the_rate_goes_on_for_ever() -> None:
    budget = Budget(FAILING, 0.0)
    for second in range(1, 1000):
        assert budget.spend(10, float(second)) == 0.0


def test_debt_for_too_long_is_a_failure_that_says_of_what() -> None:
    budget = Budget(FAILING, 0.0)
    now_s = 0.0
    with pytest.raises(OverBudgetError, match="sends things without end: more than 10 a second for 5 s"):
        while now_s < 60:
            now_s += budget.spend(20, now_s)
    assert 5 < now_s < 8 + 100 / 10


def test_debt_larger_than_the_patience_is_a_failure() -> None:
    with pytest.raises(OverBudgetError):
        Budget(FAILING, 0.0).spend(100 + 51, 0.0)


def test_a_peak_that_is_over_is_forgotten() -> None:
    budget = Budget(FAILING, 0.0)
    for peak in range(20):
        at_s = peak * 30.0
        assert budget.spend(120, at_s) == 2.0
    assert budget.spend(1, 20 * 30.0) == 0.0


def test_budget_without_a_patience_never_fails() -> None:
    budget = Budget(SLOWED, 0.0)
    assert budget.limit.patience_s == math.inf
    assert budget.spend(1_000_000, 0.0) == pytest.approx(99_990)

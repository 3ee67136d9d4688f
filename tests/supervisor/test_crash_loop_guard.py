"""When an agent that keeps ending is left alone, and when it has another chance."""

from __future__ import annotations

import pytest

from autoforward.supervisor.session.crash_loop_guard import AGENT_REST_S, MAX_QUICK_ENDS, WORKED_S, CrashLoopGuard

pytestmark = pytest.mark.unit


def ended(times: int, *, after_s: float) -> tuple[CrashLoopGuard, float]:
    ends, now_s = CrashLoopGuard(), 1000.0
    for _ in range(times):
        assert ends.refusal_reason("run 1", now_s) is None
        ends.began(now_s)
        now_s += after_s
        ends.ended("killed", now_s)
    return ends, now_s


def test_three_quick_ends_in_a_row_are_enough() -> None:
    ends, now_s = ended(MAX_QUICK_ENDS, after_s=WORKED_S - 0.1)
    assert ends.refusal_reason("run 1", now_s) == "it ended 3 times within 5 s of its start: killed"
    assert ends.refusal_reason("run 1", now_s + AGENT_REST_S) is not None


def test_agent_has_another_chance_after_a_while_and_after_a_restart() -> None:
    ends, now_s = ended(MAX_QUICK_ENDS, after_s=0.1)
    assert ends.refusal_reason("run 1", now_s + AGENT_REST_S + 1) is None
    ends, now_s = ended(MAX_QUICK_ENDS, after_s=0.1)
    assert ends.refusal_reason("run 2", now_s) is None
    ends.began(now_s)
    ends.ended("killed", now_s + 0.1)
    assert ends.refusal_reason("run 2", now_s + 0.1) is None, "counted anew"


def test_agent_that_worked_for_a_while_resets_the_count() -> None:
    ends, now_s = ended(MAX_QUICK_ENDS - 1, after_s=0.1)
    ends.began(now_s)
    ends.ended("the engine went", now_s + WORKED_S + 1)
    assert ends.refusal_reason("run 1", now_s + WORKED_S + 1) is None
    ends, now_s = ended(10, after_s=WORKED_S)
    assert ends.refusal_reason("run 1", now_s) is None

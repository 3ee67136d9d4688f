"""Detect an agent that keeps ending right after its start; the next lane is then used. Pure; time is passed in."""

from __future__ import annotations

WORKED_S = 5.0
"""A watch that lasted this long had worked; one that is lost sooner counts as a failed attempt, and is backed off from."""

MAX_QUICK_ENDS = 3
"""In a row, of the same run of the container: whatever ends it will do so again."""

AGENT_REST_S = 60.0
"""For so long after the last of them a watch that begins does without it."""


class CrashLoopGuard:
    """`began` and `ended` for each agent; `refusal_reason` before the next one."""

    def __init__(self) -> None:
        self._run = ""
        self._began_s = self._ended_s = 0.0
        self._count = 0
        self._reason = ""

    def began(self, now_s: float) -> None:
        self._began_s = now_s

    def ended(self, reason: str, now_s: float) -> None:
        is_quick = now_s - self._began_s < WORKED_S
        self._count, self._ended_s, self._reason = (self._count + 1 if is_quick else 0), now_s, reason

    def refusal_reason(self, run: str, now_s: float) -> str | None:
        """Why no agent is to be started now; None when one may be. `run` differs once the container has been restarted."""
        if run != self._run or now_s - self._ended_s > AGENT_REST_S:
            self._run, self._count = run, 0
        if self._count < MAX_QUICK_ENDS:
            return None
        return f"it ended {self._count} times within {WORKED_S:.0f} s of its start: {self._reason}"

"""Detect an agent that keeps ending right after its start; the next lane is then used. Pure; time is passed in."""

from __future__ import annotations

WORKED_S = 5.0
"""A watch that lasted this long has worked; an earlier loss counts as a failed attempt, with backoff."""

MAX_QUICK_ENDS = 3
"""Failures in a row in the same run of the container: another attempt will fail too."""

AGENT_REST_S = 60.0
"""How long new watches do without the agent after the last failure."""


class CrashLoopGuard:
    """Call `began` and `ended` for each agent; `refusal_reason` before the next one."""

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
        """Why no agent may start now, or None. `run` changes when the container restarts."""
        if run != self._run or now_s - self._ended_s > AGENT_REST_S:
            self._run, self._count = run, 0
        if self._count < MAX_QUICK_ENDS:
            return None
        return f"it ended {self._count} times within {WORKED_S:.0f} s of its start: {self._reason}"

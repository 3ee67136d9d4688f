"""What the numbers of one run must show, as data, and whether they do. Pure.

Ratios compare medians of the same run. A check whose numbers were not measured is `None`: neither passed nor failed,
and always said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.figures import paired_ratios, value

MUX = "agent-mux"
"""The agent lane without the direct path; where there is no direct path that is the agent lane."""


@dataclass(frozen=True)
class Check:
    """`way`'s column against `factor` times `other`'s, or against the number `factor` alone."""

    title: str
    way: str
    column: str
    at_most: bool
    factor: float
    other: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`passed` is None when it could not be told; `measured` is the ratio, or the number, or None."""

    check: Check
    measured: float | None
    passed: bool | None
    spread: tuple[float, float] | None = None

    def line(self) -> str:
        """For people."""
        word = {True: "pass", False: "FAIL", None: "----"}[self.passed]
        sign = "<=" if self.check.at_most else ">="
        if self.measured is None:
            return f"{word}  {self.check.title}: not measured"
        spread = f"  (rounds: {self.spread[0]:.2f} to {self.spread[1]:.2f})" if self.spread else ""
        return f"{word}  {self.check.title}: {self.measured:.3g} {sign} {self.check.factor:g}{spread}"


CHECKS = (
    Check("first byte p50, agent / ssh -L", "agent", "first_byte_ms", True, 0.7, "ssh"),
    Check("connections/s, agent / ssh -L", "agent", "connections_s", False, 1.6, "ssh"),
    Check("connections/s, agent / docker run -p", "agent", "connections_s", False, 0.8, "published"),
    Check("keep-alive requests/s, agent / ssh -L", "agent", "requests_s", False, 1.1, "ssh"),
    Check("bulk out, mux / bare exec stream", MUX, "out_mb_s", False, 0.9, "bare-exec"),
    Check("bulk out, direct path / docker run -p", "agent-direct", "out_mb_s", False, 0.8, "published"),
    Check("detection p95, ms", "agent", "detection_p95_ms", True, 150),
    Check("idle, % of a core per container", "agent", "idle_percent", True, 0.3),
    Check("supervisor, 50 containers x 10 forwards, MB", "agent", "memory_mb", True, 60),
    Check("connections at once that are answered rightly", "agent", "concurrent", False, 1000),
    Check("first byte p95 beside a stalled reader and bulk, ms", "agent", "fairness_p95_ms", True, 30),
)


def aliases(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the two names that checks use for the agent lane's ways of bulk.

    With a direct path there is a row of its own without it; else the agent lane is the mux, and there is no direct path.
    """
    ways = dict(document["ways"])
    if MUX in ways:
        ways["agent-direct"] = ways.get("agent", {})
    elif "agent" in ways:
        ways[MUX] = ways["agent"]
    return {**document, "ways": ways}


def judge(document: Mapping[str, Any], checks: tuple[Check, ...] = CHECKS) -> list[Outcome]:
    """Every check's outcome, in order."""
    document = aliases(document)
    return [_judge(document, check) for check in checks]


def _judge(document: Mapping[str, Any], check: Check) -> Outcome:
    ours = value(document, check.way, check.column)
    spread = None
    if ours is None:
        return Outcome(check, None, None)
    if check.other is not None:
        theirs = value(document, check.other, check.column)
        if not theirs:
            return Outcome(check, None, None)
        ours /= theirs
        ratios = paired_ratios(document, check.way, check.other, check.column)
        spread = (min(ratios), max(ratios)) if len(ratios) > 1 else None
    return Outcome(check, ours, ours <= check.factor if check.at_most else ours >= check.factor, spread)

"""Work budgets: what one container may cost the supervisor a second, even with valid input.

A token bucket. A spender over its budget gets a time to rest; one that stays in debt for longer than `patience_s` has
failed. Pure: time is passed in, in monotonic seconds. Each limit is named below with its reason; SPEC.md, "Budgets of
work", has the same table.

Costs, CPython 3.11 on one core: a frame without data 0.6 to 0.9 µs in the data plane, a socket of a snapshot 2 µs there and
some 10 µs in control (decoding, planning), a plan with 128 forwards 3 ms, an event 0.1 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from autoforward.core.errors import ProtocolError


class OverBudgetError(ProtocolError):
    """A container went on and on to cost more than it may."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`rate` units of `what` a second, `burst` of them at once. `patience_s` inf: its container is slowed and never fails."""

    what: str
    rate: float
    burst: float
    patience_s: float = math.inf


PATIENCE_S = 10.0
"""In debt for so long is no peak: the container means it."""

FRAMES: Final = Limit("frames", 200_000, 50_000)
"""Of one connection to an agent (exec stream, trunk). The fastest honest agent sends 60,000 a second, all the data plane
can relay; a flood at this rate takes a fifth of a core. An agent that is slowed puts more bytes into each frame."""

EMPTY_FRAMES: Final = Limit("frames and words that mean nothing", 2_000, 50_000, PATIENCE_S)
"""Of one connection to an agent: frames of streams that are not open, questions, repetitions, every 16 bytes of its standard
error. Some cross the end of a stream, so that each stream adds `FRAMES_OF_A_STREAM`; an honest agent has no others."""

FRAMES_OF_A_STREAM = 16
"""Of a stream that the host opened: as many may come after its end, or be nothing but its opening and its ends."""

PING_COST = 10
"""In empty frames: each is answered. The agent has no reason to ask."""

PROCESS_COST = 4
"""In frames, beside the frame: a name is decoded, masked and looked up."""

DATAGRAM_COST = 1
"""In frames, beside the frame: a datagram goes to its client by itself, while what comes for TCP goes together."""

SNAPSHOTS: Final = Limit("sockets in snapshots", 6_000, 12_000)
"""Of one session, in sockets, and `SNAPSHOT_COST` for each snapshot: the newest one waits for its turn, those between are
passed over. Three full snapshots at once, or those of a container with 500 listeners, of which one changes every 0.1 s; a full
one is 50 ms of work for control."""

SNAPSHOT_COST = 64

NAMES: Final = Limit("names of processes", 1_000, 8_192)
"""Of one session; a name of 64 bytes or more counts for each of these (`name_cost`). To mask one of 1,024 takes 0.5 ms."""

WATCHER_FRAMES: Final = Limit("snapshots", 25, 250, PATIENCE_S)
"""Of one shell watcher, which looks ten times a second at most."""

WATCHER_LINES: Final = Limit("lines", 2_000, 16_384, PATIENCE_S)
"""On the standard error of one shell watcher: each socket is named once, and each relay that is killed once."""

PLANS: Final = Limit("changes of its ports", 20, 100)
"""Of one session: decisions what to forward. Ten snapshots a second, and the names of processes after each; with thousands
of ports a decision is 50 ms of work (`plan_cost`)."""

EVENTS: Final = Limit("events", 10, 2_000)
"""Of one session: with 128 forwards and as many other ports, all of them come, go, and come back in another container three
times before its next decision waits. Who changes his ports or names all the time is told of at this rate."""

ATTEMPTS: Final = Limit("restarts", 1, 20)
"""Of one session: looks at its container, and attempts to watch it. Each is some processes for the engine to start."""

FILES: Final = Limit("configurations", 0.5, 20)
"""Of one session: its files are read and applied again, with an event and a line of the log for each that is not valid."""

LOG_LINES: Final = Limit("lines of the log", 1, 60)
"""Of one session, beside those of its events: refused connections, and whatever else it can cause; others are counted."""

CLOCK_S = 1e-6
"""A rest that is shorter is none: it would be over before it has begun."""

LEFT_ALONE_S = 60.0
"""After a failure for want of budget, until the session is tried again; a container that is started again need not wait."""


def name_cost(size: int) -> int:
    """Of a process with a command line of `size` bytes, in units of `NAMES`."""
    return 1 + size // 64


def plan_cost(sockets: int) -> int:
    """Of a decision about so many sockets, in units of `PLANS`."""
    return 1 + sockets // 256


class Budget:
    """What is left of one `Limit`, full at `now_s`."""

    __slots__ = ("_as_of_s", "_in_debt_since_s", "_left", "limit")

    def __init__(self, limit: Limit, now_s: float) -> None:
        self.limit = limit
        self._left = limit.burst
        self._as_of_s = now_s
        self._in_debt_since_s: float | None = None

    def __repr__(self) -> str:
        return f"<Budget {self._left:.0f} of {self.limit.what}>"

    def spend(self, cost: float, now_s: float) -> float:
        """Take `cost`; the seconds to rest before more is spent, 0.0 while there is something left. Raises OverBudgetError."""
        self._refill(now_s)
        self._left -= cost
        if self._left >= 0:
            return 0.0
        if self._in_debt_since_s is None:
            self._in_debt_since_s = now_s
        limit, rest_s = self.limit, -self._left / self.limit.rate
        if max(rest_s, now_s - self._in_debt_since_s) > limit.patience_s:
            raise OverBudgetError(
                f"it sends {limit.what} without end: more than {limit.rate:,.0f} a second for {limit.patience_s:.0f} s"
            )
        return rest_s

    def earn(self, units: float) -> None:
        """It may spend so much more, never beyond its burst."""
        self._left = min(self.limit.burst, self._left + units)

    def rest_s(self, now_s: float) -> float:
        """How long to wait until something may be spent; 0.0: not at all."""
        self._refill(now_s)
        rest_s = -self._left / self.limit.rate
        return rest_s if rest_s > CLOCK_S else 0.0

    def _refill(self, now_s: float) -> None:
        limit = self.limit
        self._left = min(limit.burst, self._left + limit.rate * (now_s - self._as_of_s))
        self._as_of_s = now_s
        if self._in_debt_since_s is not None and self._left >= limit.burst / 2:  # a moment's rest ends no flood
            self._in_debt_since_s = None

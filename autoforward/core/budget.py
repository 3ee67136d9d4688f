"""Work budgets: what one container may cost the supervisor a second, even with valid input.

A token bucket. A spender over its budget gets a time to wait; one in debt for longer than `patience_s` has failed.
Pure: time is passed in, in monotonic seconds. Each limit has its reason below; SPEC.md, "Budgets of work", has the
same table.

Costs, CPython 3.11 on one core: a frame without data 0.6 to 0.9 µs in the data plane, a socket of a snapshot 2 µs there
and about 10 µs in control (decoding, planning), a plan with 128 forwards 3 ms, an event 0.1 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from autoforward.core.errors import ProtocolError


class OverBudgetError(ProtocolError):
    """A container stayed over its budget for too long."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`rate` units of `what` a second, `burst` of them at once. `patience_s` inf: the container is slowed and never fails."""

    what: str
    rate: float
    burst: float
    patience_s: float = math.inf


PATIENCE_S = 10.0
"""A debt that lasts this long is no peak."""

FRAMES: Final = Limit("frames", 200_000, 50_000)
"""Per connection to an agent (exec stream, trunk). The fastest honest agent sends 60,000 a second, all that the data
plane can relay; a flood at this rate takes a fifth of a core. A slowed agent puts more bytes into each frame.
"""

EMPTY_FRAMES: Final = Limit("frames and words that mean nothing", 2_000, 50_000, PATIENCE_S)
"""Per connection to an agent: frames of closed streams, pings, repeats, every 16 bytes of stderr. Some arrive just
after their stream's end, so each stream adds `FRAMES_OF_A_STREAM`; an honest agent sends no others.
"""

FRAMES_OF_A_STREAM = 16
"""Per stream that the host opened: frames that may arrive after its end, or that only open and end it."""

PING_COST = 10
"""In empty frames, because each is answered; an agent has no reason to ping."""

PROCESS_COST = 4
"""In frames, in addition to the frame: a name is decoded, masked and looked up."""

DATAGRAM_COST = 1
"""In frames, in addition to the frame: each datagram is sent separately, while TCP data is sent together."""

SNAPSHOTS: Final = Limit("sockets in snapshots", 6_000, 12_000)
"""Per session, in sockets, plus `SNAPSHOT_COST` per snapshot; only the newest waits, those between are dropped. Allows
three full snapshots at once, or a container with 500 listeners of which one changes every 0.1 s; a full one is 50 ms
of work for control.
"""

SNAPSHOT_COST = 64

NAMES: Final = Limit("names of processes", 1_000, 8_192)
"""Per session; a longer name counts once per 64 bytes (`name_cost`). Masking one of 1,024 takes 0.5 ms."""

WATCHER_FRAMES: Final = Limit("snapshots", 25, 250, PATIENCE_S)
"""Per shell watcher, which polls at most ten times a second."""

WATCHER_LINES: Final = Limit("lines", 2_000, 16_384, PATIENCE_S)
"""On one shell watcher's stderr: each socket is named once, and each killed relay once."""

PLANS: Final = Limit("changes of its ports", 20, 100)
"""Per session: plans. Ten snapshots a second, plus the names of processes after each; with thousands of ports a plan is
50 ms of work (`plan_cost`).
"""

EVENTS: Final = Limit("events", 10, 2_000)
"""Per session: 128 forwards and as many other ports come, go, and return in another container three times before its
next decision waits. Constantly changing ports or names are reported at this rate.
"""

ATTEMPTS: Final = Limit("restarts", 1, 20)
"""Per session: inspections of its container and attempts to watch it. Each starts several processes on the engine."""

FILES: Final = Limit("configurations", 0.5, 20)
"""Per session: its files are read and applied again, with an event and a log line for each invalid one."""

LOG_LINES: Final = Limit("lines of the log", 1, 60)
"""Per session, besides its events: refused connections and other lines that it can cause; the rest is counted."""

CLOCK_S = 1e-6
"""A shorter wait is not worth a timer."""

LEFT_ALONE_S = 60.0
"""After a session ran out of budget, until it is tried again; a restarted container is tried at once."""


def name_cost(size: int) -> int:
    """Of a process with a command line of `size` bytes, in units of `NAMES`."""
    return 1 + size // 64


def plan_cost(sockets: int) -> int:
    """Of a plan for that many sockets, in units of `PLANS`."""
    return 1 + sockets // 256


class Budget:
    """The remaining budget of one `Limit`, full at `now_s`."""

    __slots__ = ("_as_of_s", "_in_debt_since_s", "_left", "limit")

    def __init__(self, limit: Limit, now_s: float) -> None:
        self.limit = limit
        self._left = limit.burst
        self._as_of_s = now_s
        self._in_debt_since_s: float | None = None

    def __repr__(self) -> str:
        return f"<Budget {self._left:.0f} of {self.limit.what}>"

    def spend(self, cost: float, now_s: float) -> float:
        """Spend `cost`; returns the seconds to wait before spending more, 0.0 if there is budget left. Raises OverBudgetError."""
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
        """Add `units`, never beyond the burst."""
        self._left = min(self.limit.burst, self._left + units)

    def rest_s(self, now_s: float) -> float:
        """How long to wait before spending; 0.0: not at all."""
        self._refill(now_s)
        rest_s = -self._left / self.limit.rate
        return rest_s if rest_s > CLOCK_S else 0.0

    def _refill(self, now_s: float) -> None:
        limit = self.limit
        self._left = min(limit.burst, self._left + limit.rate * (now_s - self._as_of_s))
        self._as_of_s = now_s
        if self._in_debt_since_s is not None and self._left >= limit.burst / 2:  # a short pause ends no flood
            self._in_debt_since_s = None

"""What the faults did, for people: one row a fault, printed at the end of the run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]


@dataclass
class Fault:
    """One row. `saw` collects what a user could see; `recoveries_s` how long it took each time, from when is said in `since`."""

    name: str
    saw: list[str] = field(default_factory=list)
    connections: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    since: str = ""
    goal_s: float | None = None

    def note(self, *words: str) -> None:
        """Something that the user saw; once is enough."""
        self.saw.extend(word for word in words if word and word not in self.saw)

    def note_events(self, events: Sequence[Row]) -> None:
        """Events in the order in which they came, each name once in a row, with the reasons."""
        for event in events:
            reason = f" ({event['reason']})" if event["reason"] and event["event"] != "forwarded" else ""
            self.note(f"{event['event']}{reason}")

    def note_traffic(self, outcomes: Mapping[str, int]) -> None:
        """How the connections that were made meanwhile ended."""
        self.connections.update(outcomes)

    def to_json(self) -> dict[str, Any]:
        """For the process that prints: tests may run in several."""
        return {**vars(self), "connections": dict(self.connections)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Fault:
        return cls(**{**facts, "connections": Counter(facts["connections"])})

    def recovered(self, seconds: float) -> None:
        self.recoveries_s.append(max(0.0, seconds))

    @property
    def median_s(self) -> float:
        return statistics.median(self.recoveries_s)


@dataclass
class Report:
    faults: list[Fault]

    def lines(self) -> list[str]:
        """The table, and what was measured of it against its goal."""
        rows = [("fault", "what the user saw", "recovery, s")]
        for fault in self.faults:
            times = [f"{seconds:.2f}" for seconds in sorted(fault.recoveries_s)]
            spread = f"{fault.median_s:.2f} ({times[0]}-{times[-1]}, n={len(times)})" if len(times) > 1 else ""
            carried = ", ".join(f"{count} {outcome}" for outcome, count in sorted(fault.connections.items()))
            saw = "; ".join((*fault.saw, *([f"connections: {carried}"] if carried else [])))
            rows.append((fault.name, saw, spread or "".join(times) or "-"))
        widths = [min(46, max(len(row[0]) for row in rows)), max(len(row[2]) for row in rows)]
        lines = [f"{name:<{widths[0]}}  {seconds:<{widths[1]}}  {saw}" for name, saw, seconds in rows]
        for fault in self.faults:
            if fault.goal_s is not None and fault.recoveries_s:
                met = "met" if fault.median_s <= fault.goal_s else "MISSED"
                lines.append(
                    f"median of {fault.name}: {fault.median_s:.2f} s {fault.since}, goal {fault.goal_s:.0f} s: {met}"
                )
        return lines

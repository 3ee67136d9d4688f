"""Numbers of a run: percentiles, medians, and what a run is as a document. Pure.

A document is what `docs/benchmarks.json` holds: {"version", "date", "quick", "rounds", "machine": {..}, "ways": {name:
{"title", "note", "skipped", "samples": {column: [number, ..]}}}}. A sample list has one number per round, `detection_ms` one
per listener.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


def percentile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that at least `part` (0 to 1) of all samples do not exceed. ValueError when there is none."""
    if not samples:
        raise ValueError("no samples")
    if not 0 <= part <= 1:
        raise ValueError(f"{part} is not within 0 and 1")
    return sorted(samples)[max(0, math.ceil(part * len(samples)) - 1)]


def median(samples: Sequence[float]) -> float:
    """The middle one, or the mean of the middle two. ValueError when there is none."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass(frozen=True)
class Column:
    """One column: `part` is the percentile that is shown (None: the median of rounds)."""

    key: str
    title: str
    samples: str
    digits: int
    less_is_better: bool
    part: float | None = None


COLUMNS = (
    Column("first_byte_ms", "first byte p50, ms", "first_byte_ms", 2, True),
    Column("connections_s", "new conn/s, 32 clients", "connections_s", 0, False),
    Column("requests_s", "keep-alive req/s, 32 clients", "requests_s", 0, False),
    Column("round_trip_ms", "round trip p50, ms", "round_trip_ms", 3, True),
    Column("out_mb_s", "bulk out, MB/s", "out_mb_s", 0, False),
    Column("in_mb_s", "bulk in, MB/s", "in_mb_s", 0, False),
    Column("concurrent", "concurrent, right", "concurrent_right", 0, False),
    Column("detection_p50_ms", "detection p50, ms", "detection_ms", 0, True, 0.5),
    Column("detection_p95_ms", "p95", "detection_ms", 0, True, 0.95),
    Column("detection_p99_ms", "p99", "detection_ms", 0, True, 0.99),
    Column("start_ms", "start, ms", "start_ms", 0, True),
    Column("fairness_p95_ms", "first byte p95 beside bulk, ms", "fairness_p95_ms", 1, True),
    Column("idle_percent", "idle, % of a core", "idle_percent", 3, True),
    Column("memory_mb", "supervisor, MB", "memory_mb", 1, True),
)


def value_of(document: Mapping[str, Any], way: str, column: Column) -> float | None:
    """What the table shows there; None where nothing was measured."""
    samples = document["ways"].get(way, {}).get("samples", {}).get(column.samples, [])
    if not samples:
        return None
    return median(samples) if column.part is None else percentile(samples, column.part)


def value(document: Mapping[str, Any], way: str, key: str) -> float | None:
    """`value_of` by the column's key. KeyError when there is no such column."""
    return value_of(document, way, _BY_KEY[key])


def paired_ratios(document: Mapping[str, Any], way: str, other: str, samples: str) -> list[float]:
    """`way` over `other`, round by round: what a machine that is busy at times changes least."""
    ours = document["ways"].get(way, {}).get("samples", {}).get(samples, [])
    theirs = document["ways"].get(other, {}).get("samples", {}).get(samples, [])
    return [mine / their for mine, their in zip(ours, theirs, strict=False) if their]


_BY_KEY = {column.key: column for column in COLUMNS}

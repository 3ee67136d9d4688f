"""Transfer rates: two samples of the rows to rates, and their history as a sparkline. Pure.

Rows hold totals; two samples and the time between them make a rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from autoforward.cli.console.cells import Row

MAX_SAMPLES = 60
"""A minute, at one sample a second: the longest sparkline."""

MIN_INTERVAL_S = 0.5
"""Polls that come sooner (after an event) are no sample: the history needs even steps."""

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:-=+*#@"


@dataclass(slots=True)
class Rate:
    """Bytes a second into the container (`up`) and out of it (`down`), and the totals of the last samples."""

    up: float = 0.0
    down: float = 0.0
    samples: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))


class Rates:
    """Call `sample` once a poll; ended forwards are forgotten."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._rates: dict[str, Rate] = {}
        self._at_s: float | None = None

    def sample(self, rows: Iterable[Row], now_s: float) -> bool:
        """Whether it was a sample: not if it comes sooner than `MIN_INTERVAL_S` after the last."""
        passed_s = None if self._at_s is None else now_s - self._at_s
        if passed_s is not None and passed_s < MIN_INTERVAL_S:
            return False
        counts = {key_of(row): (row["bytes"]["in"], row["bytes"]["out"]) for row in rows}
        rates = {}
        for key, (into, out) in counts.items():
            rate = rates[key] = self._rates.get(key) or Rate()
            before = self._counts.get(key)
            # Counters restart at 0 with a new supervisor, and with a forward that comes back.
            if passed_s and before is not None and into >= before[0] and out >= before[1]:
                rate.up, rate.down = (into - before[0]) / passed_s, (out - before[1]) / passed_s
            else:
                rate.up = rate.down = 0.0
            rate.samples.append(rate.up + rate.down)
        self._counts, self._rates, self._at_s = counts, rates, now_s
        return True

    def of(self, row: Row) -> Rate:
        return self._rates.get(key_of(row)) or Rate()


def key_of(row: Row) -> str:
    """A row's identity between polls, with or without an id."""
    return str(row["id"] or f"{row['containerId']}/{row['containerHost']}:{row['port']}/{row['transport']}")


def sparkline(samples: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The last `width` samples, scaled to the greatest, newest at the right; empty if nothing moved."""
    shown = list(samples)[-width:] if width > 0 else []
    greatest = max(shown, default=0.0)
    if greatest <= 0:
        return ""
    steps = len(blocks) - 1
    # Any traffic at all is visible.
    levels = (0 if value <= 0 else max(1, round(value / greatest * steps)) for value in shown)
    return "".join(blocks[level] for level in levels).rjust(width)


def short_rate(per_s: float) -> str:
    """`0`, `950`, `1.2k`, `34M`: bytes a second in at most four characters."""
    if per_s < 999.5:
        return f"{per_s:.0f}"
    for unit in ("k", "M", "G", "T"):
        per_s /= 1000
        if per_s < 9.95:
            return f"{per_s:.1f}{unit}"
        if per_s < 999.5:
            return f"{per_s:.0f}{unit}"
    return "∞"

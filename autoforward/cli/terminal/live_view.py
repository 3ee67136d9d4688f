"""The screen of `list --watch`: rows and selection to lines for a terminal of a given size. Pure.

    autoforward  3 ports: 2 active, 1 waiting  ↑ 1 kB/s  ↓ 34 MB/s
      LOCAL           TARGET  PORT  STATUS   UP/s  DOWN/s  TREND
    > localhost:3000  web     3000  active   1.2k     34M  ▁▃▇█▂
    fwd-1a2b3c4d  http://localhost:3000 -> web:3000  node server.js
    ↑↓ select  o open  c copy URL  s stop  q quit

A reason is shown below its row if those of all rows fit, else only the selected row's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from autoforward.cli.console.cells import CELLS, Row, columns_of, cut_to, in_ascii, local_of, port_of, size
from autoforward.cli.terminal.rates import ASCII_BLOCKS, BLOCKS, Rates, key_of, short_rate, sparkline
from autoforward.cli.terminal.table import (
    GAP,
    NARROW,
    Layout,
    TerminalStyle,
    choose_widths,
    line_of,
    natural_widths,
    reason_lines,
    reasons_under,
    styled,
)
from autoforward.core.text import printable

MARK = "> "
"""Marks the selected row; other rows have two spaces."""

STILL = ("LOCAL", "TARGET", "SERVICE", "PORT", "PROCESS", "LABEL", "STATUS")
MOVING = ("AGE", "CONNECTIONS")
"""The columns of `list` shown here. The id is in the line about the selected row, which the keys act on."""

LIVE = Layout(
    ("SERVICE", "AGE", "CONNECTIONS", "LABEL", "PROCESS", "PORT", "TREND", "UP/s", "DOWN/s", "STATUS"),
    nice=3,
    long=0,
    narrow={**NARROW, "TARGET": 8},
)
"""`http://` goes before any column."""

MIN_TREND, MAX_TREND = 6, 40

EMPTY = "nothing is forwarded yet: what starts to listen in a container appears here"

KEYS = (("↑↓", "select"), ("o", "open"), ("c", "copy URL"), ("s", "stop"), ("q", "quit"))


class _Still:
    """The cells that do not change with time, and their column widths; `short` is LOCAL's, cut."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.cells = [{name: printable(CELLS[name](row)) for name in STILL} for row in rows]
        self.widths, self.short = natural_widths(self.cells)


@dataclass(slots=True)
class View:
    """The state of the screen. `note` replaces the line of keys; `absent` says why no rows are known; `empty` is shown
    without rows.
    """

    rows: Sequence[Row] = ()
    rates: Rates = field(default_factory=Rates)
    absent: str | None = None
    empty: str = EMPTY
    note: str | None = None
    selected: str | None = None
    top: int = 0
    """The first visible row."""
    _still: _Still | None = None

    def update(self, rows: Sequence[Row]) -> None:
        """Replace the rows: the selected row stays selected, or the one that takes its place.

        The same sequence again means that only ages, connections and bytes have changed.
        """
        at = self.index
        if rows is not self.rows:
            self.rows, self._still = rows, None
            self.empty = EMPTY if rows else self.empty
        if rows and all(key_of(row) != self.selected for row in rows):
            self.selected = key_of(rows[min(at, len(rows) - 1)])

    @property
    def index(self) -> int:
        """The selected row's number; 0 without rows."""
        return next((number for number, row in enumerate(self.rows) if key_of(row) == self.selected), 0)

    @property
    def row(self) -> Row | None:
        return self.rows[self.index] if self.rows else None

    @property
    def still(self) -> _Still:
        """The constant cells of the current rows, which must not be empty."""
        if self._still is None:
            self._still = _Still(self.rows)
        return self._still

    def move(self, by: int) -> None:
        if self.rows:
            self.selected = key_of(self.rows[max(0, min(len(self.rows) - 1, self.index + by))])


def draw(view: View, style: TerminalStyle, height: int) -> list[str]:
    """At most `height` lines, each at most `style.width` columns wide. Scrolls `view` to the selected row."""
    title, foot = _title(view, style), _foot(view, style)
    if view.absent is not None or not view.rows:
        words = view.absent or printable(view.empty)
        header, shown = [], list(reason_lines(words, style))
        room = height - 1 - len(foot)
    else:
        table = _Table(view, style)
        header = [table.header]
        room = max(height - 2 - len(foot), 1)
        shown = table.with_reasons() if len(view.rows) <= room else []
        if not 0 < len(shown) <= room:
            foot.insert(1, _reason(view, style))
            room = max(room - 1, 1)
            view.top = max(min(view.top, view.index, len(view.rows) - room), view.index - room + 1, 0)
            shown = [table.line(number) for number in range(len(view.rows))[view.top : view.top + room]]
    lines = [title, *header, *shown, *[""] * (room - len(shown)), *foot]
    # With little room, rows matter more than text about them.
    return lines if len(lines) <= height else shown[: max(height, 0)]


def page_size(height: int) -> int:
    """How many rows a page key moves."""
    return max(height - 5, 1)


class _Table:
    """As wide as the widest row; only requested lines are rendered."""

    def __init__(self, view: View, style: TerminalStyle) -> None:
        self._view, self._style, self._at = view, style, view.index
        self._widths = _widths(view, style.width - len(MARK))
        self.header = " " * len(MARK) + line_of({name: name for name in self._widths}, self._widths, style)

    def line(self, number: int) -> str:
        row, style = self._view.rows[number], self._style
        texts = {**self._view.still.cells[number], **{name: CELLS[name](row) for name in MOVING}}
        rate, is_forward = self._view.rates.of(row), row["id"] is not None
        texts["UP/s"] = short_rate(rate.up).rjust(len("UP/s")) if is_forward else ""
        texts["DOWN/s"] = short_rate(rate.down).rjust(len("DOWN/s")) if is_forward else ""
        texts["TREND"] = sparkline(rate.samples, self._widths.get("TREND", 0), ASCII_BLOCKS if style.ascii else BLOCKS)
        mark = styled(style, MARK, fg="cyan", bold=True) if number == self._at else " " * len(MARK)
        return mark + line_of(texts, self._widths, style, row)

    def with_reasons(self) -> list[str]:
        lines = []
        for number, row in enumerate(self._view.rows):
            port = self._view.still.cells[number]["PORT"]
            lines += [self.line(number), *reasons_under(row, port, self._widths, self._style)]
        return lines


def _widths(view: View, width: int) -> dict[str, int]:
    """The columns that fit and their widths, in the table's order."""
    used = dict(view.still.widths)
    for name in MOVING:
        if widest := max(len(CELLS[name](row)) for row in view.rows):
            used[name] = max(widest, len(name))
    used |= {"UP/s": len("UP/s"), "DOWN/s": len("DOWN/s"), "TREND": MIN_TREND}
    widths = choose_widths(used, view.still.short, width, LIVE)
    rest = width - sum(widths.values()) - len(GAP) * (len(widths) - 1)
    if rest < 0:
        return {"LOCAL": min(widths["LOCAL"], max(width, 1))}
    if "TREND" in widths:
        widths["TREND"] = min(MIN_TREND + rest, MAX_TREND)
    return widths


def _title(view: View, style: TerminalStyle) -> str:
    """As much of the title as fits."""
    words = "autoforward"
    if view.absent is None and view.rows:
        ports = f"  {len(view.rows)} port{'s' if len(view.rows) != 1 else ''}"
        counts = Counter(str(row["status"]) for row in view.rows)
        rates = [view.rates.of(row) for row in view.rows]
        up, down = size(sum(rate.up for rate in rates)), size(sum(rate.down for rate in rates))
        statuses = f": {', '.join(f'{count} {status}' for status, count in counts.items())}"
        moving = f"  ↑ {up}/s  ↓ {down}/s"
        choices = (ports + statuses + moving, ports + moving, ports, "")
        words += next((more for more in choices if columns_of(words + more) <= style.width), "")
    return styled(style, _fitted(words, style), bold=True)


def _foot(view: View, style: TerminalStyle) -> list[str]:
    """Two lines: the selected row, and the keys or a note."""
    about = ""
    if (row := view.row) is not None and view.absent is None:
        parts = [row["id"], f"{local_of(row)} -> {row['containerName']}:{port_of(row)}", row["label"], row["process"]]
        about = GAP.join(printable(str(part)) for part in parts if part)
    if view.note:
        return [_fitted(about, style), styled(style, _fitted(printable(view.note), style), fg="yellow")]
    keys = GAP.join(f"{key} {what}" for key, what in KEYS)
    return [_fitted(about, style), styled(style, _fitted(keys, style), dim=True)]


def _reason(view: View, style: TerminalStyle) -> str:
    reason = view.row and view.row["reason"]
    return styled(style, _fitted(printable(reason or ""), style), dim=True)


def _fitted(text: str, style: TerminalStyle) -> str:
    text = cut_to(text, style.width)
    return in_ascii(text) if style.ascii else text

"""The table of `autoforward list`: rows and a width to text. Pure.

If it does not fit, long cells are cut first, then whole columns go, the least important first. An id is never cut,
because other commands take it. No `rich`: importing it takes longer than all else that `list` does.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from autoforward.cli.console.cells import CELLS, Row, columns_of, cut_to, in_ascii, is_exposed, status_of
from autoforward.cli.console.printing import Drawn
from autoforward.core.addresses import safe_url
from autoforward.core.text import printable

GAP = "  "
INDENT = "    "
"""Precedes a reason."""

MAX_ALIKE = 5
"""Ignored ports of one container and one reason that get a row each."""

MAX_SPANS = 8

COMFORTABLE: Mapping[str, int] = {"PROCESS": 20, "LABEL": 12, "TARGET": 16}
"""Columns to cut, in this order, each to this width while other columns can go."""

NARROW: Mapping[str, int] = {"PROCESS": 10, "LABEL": 10, "TARGET": 10}
"""The same for the important columns."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a table gives up where it does not fit: `goes` are the columns that go when cutting is not enough, in this order.

    The first `nice` of them go before the others are cut to `narrow`; LOCAL loses its `http://` once `long` have gone.
    """

    goes: tuple[str, ...]
    nice: int
    long: int
    narrow: Mapping[str, int]


LISTED = Layout(("SERVICE", "TRAFFIC", "AGE", "CONNECTIONS", "LABEL", "PROCESS", "PORT", "STATUS"), 4, 6, NARROW)

_COLOURS: Mapping[str, Mapping[str, Any]] = {
    "active": {"fg": "green"},
    "waiting": {"fg": "yellow"},
    "reconnecting": {"fg": "yellow"},
    "failed": {"fg": "red", "bold": True},
    "refusing": {"fg": "red"},
    "published": {"dim": True},
    "ignored": {"dim": True},
}


@dataclass(frozen=True, slots=True)
class TerminalStyle:
    """`width` in columns (0: unlimited), whether the terminal understands colours and links, and whether it is ASCII only."""

    width: int = 0
    coloured: bool = False
    links: bool = False
    ascii: bool = False


PLAIN = TerminalStyle()


def format_rows(rows: Sequence[Row], style: TerminalStyle = PLAIN) -> Drawn:
    """Aligned columns without the empty ones; each row's reason below it. No newline at the end."""
    cells = [{name: printable(cell(row)) for name, cell in CELLS.items()} for row in rows]
    widths, short = natural_widths(cells)
    if style.width:
        widths = choose_widths(widths, short, style.width, LISTED)
    lines = [line_of({name: name for name in widths}, widths, style)]
    for row, one in zip(rows, cells, strict=True):
        lines += [line_of(one, widths, style, row), *reasons_under(row, one["PORT"], widths, style)]
    return Drawn("\n".join(lines))


def summed_up(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without ignored ports of which one container has more than MAX_ALIKE for one reason, and a line for each group."""
    lots: dict[tuple[str, str] | None, list[Row]] = {}
    for row in rows:
        lots.setdefault(_lot_of(row), []).append(row)
    many = {key: lot for key, lot in lots.items() if key is not None and len(lot) > MAX_ALIKE}
    lines = [
        printable(
            f"{len(lot)} ports of {name} are ignored: {reason} ({_spans(lot)}). `autoforward list --all` shows them."
        )
        for (name, reason), lot in many.items()
    ]
    return [row for row in rows if _lot_of(row) not in many], lines


def _lot_of(row: Row) -> tuple[str, str] | None:
    """The group of an ignored port: container and reason; None for a row that stays."""
    if row["status"] == "ignored" and row["port"] is not None and row["id"] is None:
        return str(row["containerName"]), str(row["reason"])
    return None


def _spans(rows: Sequence[Row]) -> str:
    """`3000-3059, 8080`."""
    spans: list[list[int]] = []
    for port in sorted({int(row["port"]) for row in rows}):
        if spans and port == spans[-1][1] + 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    return ", ".join([*texts[:MAX_SPANS], *(["…"] if len(texts) > MAX_SPANS else [])])


def natural_widths(cells: Sequence[Mapping[str, str]]) -> tuple[dict[str, int], int]:
    """The columns that are not empty, each as wide as its widest cell, and how wide LOCAL is without its `http://`."""
    used = [name for name in cells[0] if any(one[name] for one in cells)]
    widths = {name: max(map(columns_of, (name, *(one[name] for one in cells)))) for name in used}
    return widths, max(map(columns_of, ("LOCAL", *(_short(one["LOCAL"]) for one in cells))))


def _short(local: str) -> str:
    """What stands before it is the same everywhere; a link leads there all the same."""
    return local.partition("://")[2] or local


def choose_widths(natural: Mapping[str, int], short_local: int, width: int, layout: Layout) -> dict[str, int]:
    """The columns that are left, and how wide each is. Wider than `width` only where nothing is left to cut or to drop."""
    brief = {**natural, "LOCAL": short_local}
    for dropped in range(len(layout.goes) + 1):
        leasts = [COMFORTABLE] * (dropped <= layout.nice) + [layout.narrow] * (dropped >= layout.nice)
        for least, columns in itertools.product(leasts, [natural] + [brief] * (dropped >= layout.long)):
            if (widths := _fit(columns, layout.goes[:dropped], least, width)) is not None:
                return widths
    return {name: min(size, layout.narrow.get(name, size)) for name, size in brief.items() if name not in layout.goes}


def _fit(
    columns: Mapping[str, int], gone: Iterable[str], least: Mapping[str, int], width: int
) -> dict[str, int] | None:
    """The columns without `gone`, cut as far as allowed; None if that is not enough."""
    widths = {name: size for name, size in columns.items() if name not in gone}
    over = sum(widths.values()) + len(GAP) * (len(widths) - 1) - width
    for name, size in least.items():
        if over > 0 and name in widths:
            cut = min(over, max(widths[name] - size, 0))
            widths[name] -= cut
            over -= cut
    return widths if over <= 0 else None


def line_of(texts: Mapping[str, str], widths: Mapping[str, int], style: TerminalStyle, row: Row | None = None) -> str:
    """One line of the table; without a row, the header. Decorations have no width: padding is computed before."""
    parts = []
    for name, width in widths.items():
        text = texts[name]
        if name == "LOCAL" and columns_of(text) > width:
            text = _short(text)
        text = cut_to(text, width)
        gap = " " * (width - columns_of(text))
        text = in_ascii(text) if style.ascii else text
        parts.append((styled(style, text, bold=True) if row is None else _decorated(style, row, name, text)) + gap)
    return GAP.join(parts).rstrip()


def reasons_under(row: Row, port: str, widths: Mapping[str, int], style: TerminalStyle) -> Iterable[str]:
    """The lines of a row's reason, if it has one; without the column nothing else says which port is ignored."""
    if not row["reason"]:
        return []
    what = "" if "PORT" in widths else f"port {port}: "
    return reason_lines(what + printable(row["reason"]), style, loud=is_exposed(row))


def reason_lines(text: str, style: TerminalStyle, *, loud: bool = False) -> Iterable[str]:
    """The lines of a reason below its row; `loud` for a warning."""
    text = in_ascii(text) if style.ascii else text
    if not style.width:
        return [INDENT + text]
    lines = textwrap.wrap(text, max(style.width, 20), initial_indent=INDENT, subsequent_indent=INDENT)
    return [styled(style, line, **({"fg": "red", "bold": True} if loud else {"dim": True})) for line in lines]


def styled(style: TerminalStyle, text: str, **how: Any) -> str:
    """As `click.style`, if the terminal has colours."""
    return click.style(text, **how) if style.coloured and how and text else text


def _decorated(style: TerminalStyle, row: Row, name: str, text: str) -> str:
    if name == "LOCAL" and style.links and (url := safe_url(row["url"])):
        return f"\x1b]8;;{url}\x1b\\{text}\x1b]8;;\x1b\\"
    if name == "STATUS":
        return styled(style, text, **_COLOURS.get(status_of(row), {}))
    if name == "TREND":
        return styled(style, text, fg="cyan")
    return text

"""The table of `autoforward list`: rows and a width to text. Pure.

Where it does not fit, long cells are cut first, then whole columns go, what matters least first. An id is never cut: it
is what other commands are given. No `rich` here: importing it would take longer than everything else that `list` does.
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
"""Before a reason."""

MAX_ALIKE = 5
"""Ignored ports of a container that have a row each, of those with one reason."""

MAX_SPANS = 8

COMFORTABLE: Mapping[str, int] = {"PROCESS": 20, "LABEL": 12, "TARGET": 16}
"""Columns that are cut, in this order, and to how many characters at least while there are others that may go."""

NARROW: Mapping[str, int] = {"PROCESS": 10, "LABEL": 10, "TARGET": 10}
"""The same for the columns that matter."""


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
class Look:
    """`width` in columns (0: as long as it is), whether escape sequences for colours and for links are understood, and
    whether there is nothing but ASCII."""

    width: int = 0
    coloured: bool = False
    links: bool = False
    ascii: bool = False


PLAIN = Look()


def format_rows(rows: Sequence[Row], look: Look = PLAIN) -> Drawn:
    """Aligned columns, those that are empty left out, with each row's reason below it. No newline at the end."""
    cells = [{name: printable(cell(row)) for name, cell in CELLS.items()} for row in rows]
    widths, short = natural_widths(cells)
    if look.width:
        widths = choose_widths(widths, short, look.width, LISTED)
    lines = [line_of({name: name for name in widths}, widths, look)]
    for row, one in zip(rows, cells, strict=True):
        lines += [line_of(one, widths, look, row), *reasons_under(row, one["PORT"], widths, look)]
    return Drawn("\n".join(lines))


def summed_up(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without those ignored ports of which a container has more than MAX_ALIKE for one reason, and a line a lot."""
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
    """What ignored ports have in common that are summed up: container and reason; None for what keeps its row."""
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
    """The columns without those, cut as far as they may be; None where that is not enough."""
    widths = {name: size for name, size in columns.items() if name not in gone}
    over = sum(widths.values()) + len(GAP) * (len(widths) - 1) - width
    for name, size in least.items():
        if over > 0 and name in widths:
            cut = min(over, max(widths[name] - size, 0))
            widths[name] -= cut
            over -= cut
    return widths if over <= 0 else None


def line_of(texts: Mapping[str, str], widths: Mapping[str, int], look: Look, row: Row | None = None) -> str:
    """One line of the table; without a row it is the header. Decorations take no room: what is missing is counted before."""
    parts = []
    for name, width in widths.items():
        text = texts[name]
        if name == "LOCAL" and columns_of(text) > width:
            text = _short(text)
        text = cut_to(text, width)
        gap = " " * (width - columns_of(text))
        text = in_ascii(text) if look.ascii else text
        parts.append((style(look, text, bold=True) if row is None else _decorated(look, row, name, text)) + gap)
    return GAP.join(parts).rstrip()


def reasons_under(row: Row, port: str, widths: Mapping[str, int], look: Look) -> Iterable[str]:
    """The lines of a row's reason, if it has one; without the column nothing else says which port is ignored."""
    if not row["reason"]:
        return []
    what = "" if "PORT" in widths else f"port {port}: "
    return reason_lines(what + printable(row["reason"]), look, loud=is_exposed(row))


def reason_lines(text: str, look: Look, *, loud: bool = False) -> Iterable[str]:
    """The lines under a row; `loud` where they have to be seen."""
    text = in_ascii(text) if look.ascii else text
    if not look.width:
        return [INDENT + text]
    lines = textwrap.wrap(text, max(look.width, 20), initial_indent=INDENT, subsequent_indent=INDENT)
    return [style(look, line, **({"fg": "red", "bold": True} if loud else {"dim": True})) for line in lines]


def style(look: Look, text: str, **how: Any) -> str:
    """As `click.style`, where there are colours."""
    return click.style(text, **how) if look.coloured and how and text else text


def _decorated(look: Look, row: Row, name: str, text: str) -> str:
    if name == "LOCAL" and look.links and (url := safe_url(row["url"])):
        return f"\x1b]8;;{url}\x1b\\{text}\x1b]8;;\x1b\\"
    if name == "STATUS":
        return style(look, text, **_COLOURS.get(status_of(row), {}))
    if name == "TREND":
        return style(look, text, fg="cyan")
    return text

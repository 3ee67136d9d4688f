"""The table of `autoforward list`: rows and a width to text. Pure.

Where it does not fit, long cells are cut first, then whole columns go, what matters least first. An id is never cut: it
is what other commands are given. No `rich` here: importing it would take longer than everything else that `list` does.
"""

from __future__ import annotations

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

NICE_TO_HAVE = ("SERVICE", "TRAFFIC", "AGE", "CONNECTIONS")
"""Columns that go when cutting is not enough, in this order."""

WANTED = ("LABEL", "PROCESS")
NEEDED = ("PORT", "STATUS")
"""Columns that go after them. LOCAL loses its `http://` before the port goes."""

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
    used = [name for name in CELLS if any(one[name] for one in cells)]
    natural = {name: max(map(columns_of, (name, *(one[name] for one in cells)))) for name in used}
    widths = dict(natural)
    if look.width:
        # What stands before it is the same everywhere; a link leads there all the same.
        short = [one["LOCAL"].partition("://")[2] or one["LOCAL"] for one in cells]
        widths, shortened = choose_widths(natural, max(map(columns_of, ("LOCAL", *short))), look.width)
        if shortened:
            for one, text in zip(cells, short, strict=True):
                one["LOCAL"] = text
    lines = [line_of({name: name for name in widths}, widths, look)]
    for row, one in zip(rows, cells, strict=True):
        lines.append(line_of(one, widths, look, row))
        if row["reason"]:
            # Without the column nothing else says which port is ignored.
            what = "" if "PORT" in widths else f"port {one['PORT']}: "
            lines += reason_lines(what + printable(row["reason"]), look, loud=is_exposed(row))
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


def choose_widths(natural: Mapping[str, int], short_local: int, width: int) -> tuple[dict[str, int], bool]:
    """The columns that are left and how wide each is, and whether LOCAL is the short one.

    Wider than `width` only where nothing is left to cut or to drop.
    """
    brief = {**natural, "LOCAL": short_local}
    for dropped in range(len(NICE_TO_HAVE) + 1):
        if (widths := fit(natural, NICE_TO_HAVE[:dropped], COMFORTABLE, width)) is not None:
            return widths, False
    for dropped in range(len(WANTED) + 1):
        if (widths := fit(natural, (*NICE_TO_HAVE, *WANTED[:dropped]), NARROW, width)) is not None:
            return widths, False
    for dropped in range(len(NEEDED) + 1):
        gone = (*NICE_TO_HAVE, *WANTED, *NEEDED[:dropped])
        for columns in (natural, brief):
            if (widths := fit(columns, gone, NARROW, width)) is not None:
                return widths, columns is brief
    least = {
        name: min(size, NARROW.get(name, size)) for name, size in brief.items() if name in ("ID", "LOCAL", "TARGET")
    }
    return least, True


def fit(columns: Mapping[str, int], gone: Iterable[str], least: Mapping[str, int], width: int) -> dict[str, int] | None:
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
        text = cut_to(texts[name], width)
        gap = " " * (width - columns_of(text))
        text = in_ascii(text) if look.ascii else text
        parts.append((style(look, text, bold=True) if row is None else _decorated(look, row, name, text)) + gap)
    return GAP.join(parts).rstrip()


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

"""The table of `autoforward list`, for the width that there is: rows to text. Pure.

Where it does not fit, long cells are cut first, then whole columns go, what matters least first. An id is never cut: it
is what other commands are given. Texts may come out of a container: what is no printable character is shown as one.
No `rich` here: importing it would take longer than everything else that `list` does.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from autoforward.actions import safe_url

Row = Mapping[str, Any]

GAP = "  "
INDENT = "    "
"""Before a reason."""

MAX_PROCESS = 40
"""Characters of a command line in the table; the whole is in `--json`."""

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
    "published": {"dim": True},
    "ignored": {"dim": True},
}


@dataclass(frozen=True, slots=True)
class Look:
    """`width` in columns (0: as long as it is), and whether escape sequences for colours and for links are understood."""

    width: int = 0
    coloured: bool = False
    links: bool = False


PLAIN = Look()


def format_rows(rows: Sequence[Row], look: Look = PLAIN) -> str:
    """Aligned columns, those that are empty left out, with each row's reason below it. No newline at the end."""
    cells = [{name: printable(cell(row)) for name, cell in _CELLS.items()} for row in rows]
    used = [name for name in _CELLS if any(one[name] for one in cells)]
    natural = {name: max(map(columns_of, (name, *(one[name] for one in cells)))) for name in used}
    widths = dict(natural)
    if look.width:
        # What stands before it is the same everywhere; a link leads there all the same.
        short = [one["LOCAL"].partition("://")[2] or one["LOCAL"] for one in cells]
        widths, shortened = choose_widths(natural, max(map(columns_of, ("LOCAL", *short))), look.width)
        if shortened:
            for one, text in zip(cells, short, strict=True):
                one["LOCAL"] = text
    lines = [_line({name: name for name in widths}, widths, lambda _name, text: _style(look, text, bold=True))]
    for row, one in zip(rows, cells, strict=True):

        def decorate(name: str, text: str, row: Row = row) -> str:
            return _decorated(look, row, name, text)

        lines.append(_line(one, widths, decorate))
        if row["reason"]:
            # Without the column nothing else says which port is ignored.
            what = "" if "PORT" in widths else f"port {one['PORT']}: "
            lines += [_style(look, line, dim=True) for line in _reason(what + printable(row["reason"]), look.width)]
    return "\n".join(lines)


def choose_widths(natural: Mapping[str, int], short_local: int, width: int) -> tuple[dict[str, int], bool]:
    """The columns that are left and how wide each is, and whether LOCAL is the short one.

    Wider than `width` only where nothing is left to cut or to drop.
    """
    brief = {**natural, "LOCAL": short_local}
    for dropped in range(len(NICE_TO_HAVE) + 1):
        if (widths := _fit(natural, NICE_TO_HAVE[:dropped], COMFORTABLE, width)) is not None:
            return widths, False
    for dropped in range(len(WANTED) + 1):
        if (widths := _fit(natural, (*NICE_TO_HAVE, *WANTED[:dropped]), NARROW, width)) is not None:
            return widths, False
    for dropped in range(len(NEEDED) + 1):
        gone = (*NICE_TO_HAVE, *WANTED, *NEEDED[:dropped])
        for columns in (natural, brief):
            if (widths := _fit(columns, gone, NARROW, width)) is not None:
                return widths, columns is brief
    least = {
        name: min(size, NARROW.get(name, size)) for name, size in brief.items() if name in ("ID", "LOCAL", "TARGET")
    }
    return least, True


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


def columns_of(text: str) -> int:
    """How many columns a terminal takes for it: two for a wide character, none for one that goes onto another."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def cut_to(text: str, width: int) -> str:
    """At most `width` columns of it, with … at its end where something is missing."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def printable(text: str) -> str:
    """On one line and without control characters: an escape sequence in a label must not reach the terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "�" for char in text)


def _line(texts: Mapping[str, str], widths: Mapping[str, int], decorate: Callable[[str, str], str]) -> str:
    """Decorations take no room, so what is missing to the column's width is counted before."""
    parts = []
    for name, width in widths.items():
        text = cut_to(texts[name], width)
        parts.append(decorate(name, text) + " " * (width - columns_of(text)))
    return GAP.join(parts).rstrip()


def _decorated(look: Look, row: Row, name: str, text: str) -> str:
    if name == "LOCAL" and look.links and (url := safe_url(row["url"])):
        return f"\x1b]8;;{url}\x1b\\{text}\x1b]8;;\x1b\\"
    if name == "STATUS":
        return _style(look, text, **_COLOURS.get(row["status"], {}))
    return text


def _style(look: Look, text: str, **style: Any) -> str:
    return click.style(text, **style) if look.coloured and style and text else text


def _reason(text: str, width: int) -> Iterable[str]:
    if not width:
        return [INDENT + text]
    return textwrap.wrap(text, max(width, 20), initial_indent=INDENT, subsequent_indent=INDENT)


def _port(row: Row) -> str:
    where = row["containerHost"]
    own = where in (None, "127.0.0.1", "::1", "0.0.0.0", "::")
    if row["port"] is None:
        return "others"
    port = f"{row['port']}" if own else f"{where}:{row['port']}"
    return f"{port}/udp" if row["transport"] == "udp" else port


def _local(row: Row) -> str:
    if row["url"] or row["localPort"] is None:
        return str(row["url"] or "-")
    host = row["hostIp"]
    if host in (None, "127.0.0.1", "::1", "0.0.0.0", "::"):
        host = "localhost"
    return f"{f'[{host}]' if ':' in host else host}:{row['localPort']}/{row['transport']}"


def _connections(row: Row) -> str:
    count = row["connections"]
    refused = f", {count['refused']} refused" if count["refused"] else ""
    return f"{count['active']} of {count['total']}{refused}" if count["total"] or refused else ""


def _traffic(row: Row) -> str:
    moved = row["bytes"]
    return f"{_size(moved['in'])} in, {_size(moved['out'])} out" if moved["in"] or moved["out"] else ""


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.0f} TB"


_CELLS: Mapping[str, Callable[[Row], str]] = {
    "ID": lambda row: row["id"] or "-",
    "LOCAL": _local,
    "TARGET": lambda row: row["containerName"] or "-",
    "SERVICE": lambda row: row["service"] or "",
    "PORT": _port,
    "PROCESS": lambda row: cut_to(row["process"] or "", MAX_PROCESS),
    "LABEL": lambda row: row["label"] or "",
    "STATUS": lambda row: row["status"] or "-",
    "AGE": lambda row: _age(row["ageSeconds"]) if row["id"] else "",
    "CONNECTIONS": _connections,
    "TRAFFIC": _traffic,
}

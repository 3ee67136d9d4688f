"""`autoforward list`: a table that is read at a glance."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from autoforward.cli import client

MAX_PROCESS = 40
"""Characters of a command line in the table; the whole is in `--json`."""

HEADER = ("ID", "LOCAL", "TARGET", "PORT", "STATUS", "LABEL", "PROCESS", "AGE", "CONNECTIONS", "TRAFFIC")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table on stdout, with the reasons under the rows that have one."""
    if not rows:
        click.echo("nothing is forwarded", err=True)
        return
    click.echo(format_rows(rows, shutil.get_terminal_size((200, 24)).columns if sys.stdout.isatty() else 0))


def format_rows(rows: Sequence[Mapping[str, Any]], width: int) -> str:
    """Aligned columns; empty columns are left out; lines are cut to `width` characters (0: as long as they are)."""
    table = [_cells(row) for row in rows]
    used = [index for index in range(len(HEADER)) if any(cells[index] for cells in table)]
    widths = [max(len(HEADER[index]), *(len(cells[index]) for cells in table)) for index in used]
    lines = [_line([HEADER[index] for index in used], widths)]
    for row, cells in zip(rows, table, strict=True):
        lines.append(_line([cells[index] for index in used], widths))
        if row["reason"]:
            lines.append(f"    {row['reason']}")
    return "\n".join(line[:width] if width else line for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    where = row["containerHost"]
    own = where in (None, "127.0.0.1", "::1", "0.0.0.0", "::")
    port = f"{row['port']}" if own else f"{where}:{row['port']}"
    if row["transport"] == "udp":
        port += "/udp"
    count, moved = row["connections"], row["bytes"]
    traffic = f"{_size(moved['in'])} in, {_size(moved['out'])} out" if moved["in"] or moved["out"] else ""
    connections = f"{count['active']} of {count['total']}" if count["total"] else ""
    return (
        row["id"] or "-",
        row["url"] or "-",
        row["containerName"] or "-",
        port,
        row["status"] or "-",
        row["label"] or "",
        _cut(row["process"] or ""),
        _age(row["ageSeconds"]) if row["id"] else "",
        connections,
        traffic,
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PROCESS else text[: MAX_PROCESS - 1] + "…"


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


def watch_rows(target: str | None, as_json: bool) -> int:
    """The list again whenever an event says that it changed, until Ctrl-C."""
    try:
        _show(target, as_json)
        for _line in client.follow_events(None, target, replay=False):
            _show(target, as_json)
    except KeyboardInterrupt:
        pass
    return 0


def _show(target: str | None, as_json: bool) -> None:
    rows = client.list_rows(target)
    if as_json:
        click.echo(json.dumps(rows))
        return
    if sys.stdout.isatty():
        click.clear()
    print_rows(rows)

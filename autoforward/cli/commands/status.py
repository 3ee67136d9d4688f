"""`autoforward status`: print the supervisor, its engines and watches, and a table of its sessions.

`rich` does the layout. `list` has its own, because it must answer before rich is imported.
"""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoforward.cli.console.printing import show
from autoforward.core.text import printable

UNBOUNDED = 10_000
"""Columns where stdout is no terminal: programs want whole lines."""


def print_status(result: Mapping[str, Any]) -> None:
    """`result` is the answer to a `status` request."""
    for line in _heads(result):
        show(printable(line))
    if result["sessions"]:
        show("")
        for line in _lines_of(_table(result["sessions"])):
            show(line)
        for session in result["sessions"]:
            for remark in _remarks(session):
                show(printable(f"{session['container_name']}: {remark}"))


def _lines_of(table: Table) -> list[str]:
    """As wide as the terminal, if stdout is one."""
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else UNBOUNDED
    text = io.StringIO()
    Console(file=text, width=width, highlight=False, markup=False, emoji=False, no_color=True).print(table)
    return text.getvalue().splitlines()


def _heads(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"supervisor {result['version']}, pid {result['pid']}, up {result['uptime_s']:.0f} s, state in {result['home']}"
    for engine in result["engines"]:
        yield f"engine {engine['host']} ({engine['source']})"
    for watch in result.get("watches", ()):
        problem = f": {watch['problem']}" if watch["problem"] else ""
        yield f"watch for {watch['selection']} on {watch['engine']}, {watch['sessions']} session(s){problem}"


def _table(sessions: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for title in ("CONTAINER", "STATE", "FORWARDS", "LANE", "CAN", "DIRECT", "SESSION"):
        table.add_column(title, justify="right" if title == "FORWARDS" else "left", overflow="fold")
    for session in sessions:
        lane = session["lane"]
        able = [] if lane is None else [("half-close", lane["half_close"]), ("UDP", lane["udp"])]
        cells = (
            session["container_name"],
            session["state"],
            str(session["forwards"]),
            "none" if lane is None else lane["name"],
            ", ".join(name for name, can in able if can),
            "" if session.get("direct") is None else "on" if session["direct"]["on"] else "off",
            session["id"],
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _remarks(session: Mapping[str, Any]) -> Iterator[str]:
    """Problems, and what the lane's name does not say."""
    if session["problem"]:
        again = session["next_try_s"]
        yield session["problem"] + ("" if again is None else f" (next try in {again:.1f} s)")
    if session.get("exposed"):
        yield f"forwards: {session['exposed']}"
    for request in session.get("requests", ()):
        answer = ", refused" if request["refused"] else ""
        asked = f"{request['key']} = {request['value']} ({request['place']}): {request['effect']}"
        yield f"not granted{answer}: {asked}; `autoforward trust {shlex.quote(session['workspace'] or session['target'])}`"
    if session["config_problem"]:
        yield f"the configuration stays as it was: {session['config_problem']}"
    if session["lane"] is not None and session["lane"]["name"] != "agent":
        yield f"lane {session['lane']['name']}: {session['lane']['note']}"
    if (direct := session.get("direct")) is not None and direct["reason"]:
        yield f"direct: {'on' if direct['on'] else 'off'}: {direct['reason']}"

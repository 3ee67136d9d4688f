"""`autoforward list`: print the rows, once or on every change. `table.py` does the layout."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from autoforward.cli.console import supervisor_client
from autoforward.cli.console.output import warn
from autoforward.cli.console.places import session_name, unknown_yet
from autoforward.cli.console.printing import draw, print_message, show_json
from autoforward.cli.console.printing import show as print_line
from autoforward.cli.terminal.table import PLAIN, TerminalStyle, format_rows, summed_up

VOLATILE = ("ageSeconds", "connections", "bytes")
"""Columns that differ on every poll: no reason to print the list again."""

_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


def print_rows(rows: Sequence[Mapping[str, Any]], *, everything: bool = False) -> None:
    """The table on stdout, with reasons below their rows; unless `everything`, many ignored ports share a line."""
    if not rows:
        print_message("nothing is forwarded")
        return
    shown, lines = (rows, []) if everything else summed_up(rows)
    if shown:
        draw(format_rows(shown, terminal_style()))
    for line in lines:
        print_line(line)


def terminal_style() -> TerminalStyle:
    """What stdout can show; a pipe or file gets full width without decoration."""
    if not sys.stdout.isatty():
        return PLAIN
    term = os.environ.get("TERM")
    return TerminalStyle(
        width=shutil.get_terminal_size((80, 24)).columns,
        coloured=not os.environ.get("NO_COLOR") and term != "dumb",
        links=term not in ("dumb", "linux"),
        # The Linux console decodes UTF-8, but its font lacks most of these characters.
        ascii=term == "linux" or not _is_utf8(os.environ),
    )


def _is_utf8(environ: Mapping[str, str]) -> bool:
    """The locale's charset as the C library reads it. Unset means UTF-8, as in Python."""
    ctype, lang = environ.get("LC_CTYPE"), environ.get("LANG")
    if ctype in _COERCED and lang and "." in lang:
        # Python set LC_CTYPE itself (PEP 538) because LANG names a locale that is not installed.
        ctype = None
    named = environ.get("LC_ALL") or ctype or lang or "UTF-8"
    return "utf8" in named.lower().replace("-", "") and sys.stdout.encoding.lower().replace("-", "") == "utf8"


def watch_rows(said: str | None, as_json: bool) -> int:
    """The live table on a terminal, else the list again on every change.

    A target without a session gets a warning: it may appear later.
    """
    target = session_name(said)
    rows = supervisor_client.list_rows(target)
    unknown = None if rows or said is None or target is None else unknown_yet(said, target)
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        if unknown is not None:
            warn(unknown[0], hint=unknown[1])
        return _watch_in_lines(rows, target, as_json)
    from autoforward.cli.terminal.live import watch_on_terminal

    return watch_on_terminal(rows, target, terminal_style(), unknown)


def _watch_in_lines(rows: Sequence[Mapping[str, Any]], target: str | None, as_json: bool) -> int:
    """Across restarts of the supervisor, until Ctrl-C or until stdout is closed."""
    import selectors
    import time

    from autoforward.cli.commands.events import end_with_reader
    from autoforward.cli.terminal.live_feed import Feed
    from autoforward.state.folder import StatePaths

    shown: list[dict[str, Any]] | None = None

    def show(rows: Sequence[Mapping[str, Any]]) -> None:
        nonlocal shown
        now = [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]
        if now == shown:
            return
        if as_json:
            show_json(rows, indent=None)
        else:
            if shown is not None:
                print_line("")
            if rows:
                draw(format_rows(rows, terminal_style()))
            else:
                print_line("nothing is forwarded")
        shown = now

    end_with_reader(sys.stdout.fileno())
    try:
        show(rows)
        with selectors.DefaultSelector() as selector:
            feed = Feed(selector, StatePaths.locate(), target, show, lambda: show([]) if feed.state == "gone" else None)
            while True:
                feed.step(time.monotonic())
                for key, _ in selector.select(max(0.0, feed.due_s - time.monotonic())):
                    key.data()
    except KeyboardInterrupt:
        return 0

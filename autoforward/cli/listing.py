"""`autoforward list`: rows to look at. What the table looks like is in `table.py`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from autoforward.cli import client
from autoforward.cli.table import PLAIN, Look, format_rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table on stdout, with the reasons under the rows that have one."""
    if not rows:
        click.echo("nothing is forwarded", err=True)
        return
    # As it is: click would take links out where it takes colours out.
    sys.stdout.write(format_rows(rows, look_of_terminal()) + "\n")
    sys.stdout.flush()


def look_of_terminal() -> Look:
    """What stdout can show. Where it is no terminal: everything, as long as it is, and plain."""
    if not sys.stdout.isatty():
        return PLAIN
    simple = os.environ.get("TERM") in ("dumb", "linux")
    return Look(
        width=shutil.get_terminal_size((80, 24)).columns,
        coloured=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        links=not simple,
    )


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

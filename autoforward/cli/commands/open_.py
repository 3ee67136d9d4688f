"""`autoforward open`: one forward's URL, in the browser that the person has, or printed where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.browser import Row, open_and_wait, url_of
from autoforward.cli.console.printing import show
from autoforward.core.addresses import safe_url
from autoforward.core.errors import TargetError, UsageError


def open_forward(wanted: str) -> int:
    """Print the URL of the forward and open it. Raises AutoforwardError: not there, ambiguous, without a URL, not opened."""
    row = choose(supervisor_client.list_rows(), wanted)
    url = url_of(row)
    show(url)
    if row["status"] not in ("active", "published"):
        output.warn(f"port {row['port']} of {row['containerName']} is {row['status']}: it may not answer yet")
    open_and_wait(url)
    return 0


def choose(rows: Sequence[Row], wanted: str) -> Row:
    """The one row that is meant: by the forward's id, else by its port, on the host or in the container.

    Raises TargetError where there is none, UsageError where there are several.
    """
    found = [row for row in rows if row["id"] == wanted]
    if not found and wanted.isascii() and wanted.isdecimal():
        number = int(wanted[:6])
        found = [row for row in rows if number in (row["localPort"], row["port"])]
        # One that cannot be opened does not make another one ambiguous.
        found = [row for row in found if safe_url(row["url"])] or found
    if not found:
        raise TargetError(f"no forward is called {wanted}", hint="`autoforward list` shows ids and ports")
    if len(found) > 1:
        which = ", ".join(
            f"{row['id'] or '-'} ({row['containerName']}, {row['url'] or row['status']})" for row in found
        )
        raise UsageError(f"port {wanted} matches {len(found)} forwards: {which}", hint="use the forward's id")
    return found[0]

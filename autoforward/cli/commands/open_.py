"""`autoforward open`: open one forward's URL in the user's browser, or print it where no browser can be shown."""

from __future__ import annotations

from collections.abc import Sequence

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.browser import Row, open_and_wait, url_of
from autoforward.cli.console.printing import show
from autoforward.core.addresses import safe_url
from autoforward.core.errors import TargetError, UsageError


def open_forward(wanted: str) -> int:
    """Print the forward's URL and open it. Raises AutoforwardError: unknown, ambiguous, without a URL, not opened."""
    row = choose(supervisor_client.list_rows(), wanted)
    url = url_of(row)
    show(url)
    if row["status"] not in ("active", "published"):
        output.warn(f"port {row['port']} of {row['containerName']} is {row['status']}: it may not answer yet")
    open_and_wait(url)
    return 0


def choose(rows: Sequence[Row], wanted: str) -> Row:
    """Return the row that `wanted` names: by the forward's id, else by its port on the host or in the container.

    Raises TargetError without a match, UsageError for several.
    """
    found = [row for row in rows if row["id"] == wanted]
    if not found and wanted.isascii() and wanted.isdecimal():
        number = int(wanted[:6])
        found = [row for row in rows if number in (row["localPort"], row["port"])]
        # A row without a URL does not make another row ambiguous.
        found = [row for row in found if safe_url(row["url"])] or found
    if not found:
        raise TargetError(f"no forward is called {wanted}", hint="`autoforward list` shows ids and ports")
    if len(found) > 1:
        which = ", ".join(
            f"{row['id'] or '-'} ({row['containerName']}, {row['url'] or row['status']})" for row in found
        )
        raise UsageError(f"port {wanted} matches {len(found)} forwards: {which}", hint="use the forward's id")
    return found[0]

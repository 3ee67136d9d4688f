"""A forward's URL, and the program that opens it: the desktop's or AUTOFORWARD_BROWSER."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoforward.cli.console import output
from autoforward.cli.console.cells import local_of
from autoforward.config.environment import SessionEnvironment
from autoforward.core.addresses import safe_url
from autoforward.core.errors import AutoforwardError
from autoforward.desktop.launcher import opener, start_opener
from autoforward.detection.known_servers import not_http

OPENER_PATIENCE_S = 3.0
"""How long to wait for an opener. One that fails has exited by then; one that stays is the browser."""

Row = Mapping[str, Any]


def open_and_wait(what: str | Path) -> bool:
    """Open it, or say why no browser can show it; returns whether it was opened.

    Raises AutoforwardError if the opener fails within `OPENER_PATIENCE_S`.
    """
    opening = begin_opening(what)
    if isinstance(opening, str):
        output.say(f"Not opened: {opening}. AUTOFORWARD_BROWSER names a program that opens URLs.")
        return False
    try:
        status = opening.process.wait(OPENER_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return True
    if status:
        raise AutoforwardError(f"{opening.program} ended with status {status}", hint="open the URL by hand")
    return True


def url_of(row: Row) -> str:
    """The forward's URL. Raises AutoforwardError with the reason if it has none."""
    url = safe_url(row["url"])
    if url is None:
        spoken = not_http(row["port"], row["process"], row["label"]) if row["localPort"] is not None else None
        if row["transport"] == "tcp" and spoken is not None:
            raise AutoforwardError(
                f"port {row['port']} of {row['containerName']} has no URL: it speaks {spoken}, on {local_of(row)}",
                hint='if it is a web server, "protocol": "http" in portsAttributes says so',
            )
        what = "it is UDP" if row["transport"] == "udp" else "no host port of it listens"
        raise AutoforwardError(f"port {row['port']} of {row['containerName']} has no URL: {row['reason'] or what}")
    return url


@dataclass(frozen=True, slots=True)
class Opening:
    """A program that opens a URL; the caller reaps it."""

    program: str
    process: subprocess.Popen[bytes]


def begin_opening(what: str | Path) -> Opening | str:
    """Start the opener for a forward's URL or the page's file, or return why none is started. Raises AutoforwardError."""
    url = what.as_uri() if isinstance(what, Path) else safe_url(what)
    if url is None:
        raise AutoforwardError("this is not the URL of a forward")
    environment = SessionEnvironment.capture(os.environ)
    reason = no_browser_reason(environment, sys.platform)
    if reason is not None:
        return reason
    argv = [*opener(environment, sys.platform), url]
    try:
        return Opening(argv[0], start_opener(argv, environment))
    except OSError as error:
        raise AutoforwardError(f"cannot run {argv[0]}: {error.strerror}", hint="see AUTOFORWARD_BROWSER") from error


def no_browser_reason(environment: SessionEnvironment, platform: str) -> str | None:
    """Why no URL can be opened here, or None. Without a display `xdg-open` uses `BROWSER`."""
    if environment.in_ci:
        return "CI is set"
    if environment.browser or environment.get("BROWSER") or environment.has_display(platform):
        return None
    return "there is no display here"

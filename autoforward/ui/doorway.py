"""The file that opens a browser on the page with a one-time code, keeping it off command lines.

Other users of the machine can read programs' arguments, and a poller could use the code first. The file is readable by
this user only, in the state folder. A browser from a snap sees no hidden folder and no `/tmp`; it has a private folder
of its own.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import secrets
import shutil
import subprocess
import time
from pathlib import Path

from autoforward.config.environment import SessionEnvironment
from autoforward.state.ownership import parent_problem

PREFIX = "autoforward-ui-"

STALE_S = 600.0
"""Files left by a killed run; their codes are invalid."""

ASK_TIMEOUT_S = 5.0

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>autoforward</title>
<p><a href="{url}">Your forwards</a></p>
</html>
"""

# The desktop file of a program NAME of a snap NAME.
_SNAP = re.compile(r"([a-z0-9][a-z0-9-]{0,40})_[\w.-]+\.desktop", re.ASCII)


def make_doorway(folder: Path, url: str) -> Path:
    """A new file in the folder, 0600, that leads to this URL. Raises OSError."""
    for path in folder.glob(f"{PREFIX}*.html"):
        with contextlib.suppress(OSError):  # another run does the same
            if time.time() - path.lstat().st_mtime > STALE_S:
                path.unlink()
    path = folder / f"{PREFIX}{secrets.token_hex(8)}.html"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(_PAGE.format(url=html.escape(url)))
    return path


def folder_for(environment: SessionEnvironment, state_folder: Path, home: Path) -> Path:
    """Where the browser can read such a file: the state folder, or its snap's folder of this user."""
    snap = _snap_of(environment) if (home / "snap").is_dir() else None
    if snap is not None:
        folder = home / "snap" / snap / "common"
        with contextlib.suppress(OSError):
            if folder.is_dir() and parent_problem(folder / "x") is None:
                return folder
    return state_folder


def _snap_of(environment: SessionEnvironment) -> str | None:
    """The browser's snap, or None."""
    if environment.browser is not None:
        path = Path(environment.browser)
        return path.name if path.parent == Path("/snap/bin") else None
    program = shutil.which("xdg-settings")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "get", "default-web-browser"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _SNAP.fullmatch(done.stdout.strip())
    return found[1] if found else None

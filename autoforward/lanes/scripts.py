"""This package's shell scripts, and the command lines that run them: values in, argv out.

Everything runs through `sh` (or `bash` for /dev/tcp): an engine may leak the exec of a missing binary.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal

ScriptName = Literal["watcher.sh", "probe.sh", "relay.sh", "devtcp.sh"]

ENV_RELAY = "AUTOFORWARD_RELAY"
"""Environment variable of every relay process: its own token, which `kill PID TOKEN` verifies."""

ENV_SESSION = "AUTOFORWARD_SESSION"
"""Environment variable of every relay process: the session's token, by which the watcher's sweep finds it.
Not set for the watcher itself.
"""

# Tokens are found in environments with the NULs dropped: of one length, and random.
_TOKEN = re.compile(r"[0-9a-f]{32}")

MIN_POLL_INTERVAL_S = 0.05
MAX_POLL_INTERVAL_S = 60.0

FULL_READ_INTERVAL_S = 3.0
"""The tables are read at least this often, even if the cheap signs (socket count, last pid) are unchanged."""


@cache
def script(name: ScriptName) -> str:
    """The text of a script in this package."""
    return resources.files(__package__).joinpath(name).read_text(encoding="ascii")


def check_token(token: str) -> str:
    """`token` if it is 32 lower-case hex digits (`secrets.token_hex(16)`); ValueError otherwise."""
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token is 32 lower-case hex digits")
    return token


def relay_environment(relay_token: str, session_token: str) -> dict[str, str]:
    """The environment variables of a relay's exec."""
    return {ENV_RELAY: check_token(relay_token), ENV_SESSION: check_token(session_token)}


def watcher_argv(session_token: str, poll_interval_s: float, *, close_wait: bool = False) -> list[str]:
    """The command of the watcher's exec; `close_wait` adds sockets in CLOSE_WAIT to its frames.

    The interval is clamped to the valid range. Attach stdin: its EOF ends the watcher.
    """
    interval = min(max(poll_interval_s, MIN_POLL_INTERVAL_S), MAX_POLL_INTERVAL_S)
    # At most three decimals and no trailing ".0", which a `sleep` of whole seconds does not understand.
    argument = f"{interval:.3f}".rstrip("0").rstrip(".")
    skips = str(max(0, round(FULL_READ_INTERVAL_S / interval) - 1))
    argv = ["sh", "-c", script("watcher.sh"), "autoforward-watcher", check_token(session_token), argument, skips]
    return [*argv, "close-wait"] if close_wait else argv


def probe_argv() -> list[str]:
    """The command of the probe's exec."""
    return ["sh", "-c", script("probe.sh"), "autoforward-probe"]

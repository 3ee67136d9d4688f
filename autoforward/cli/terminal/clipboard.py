"""Copy a URL: with the platform's tool, with tmux, or through the terminal (OSC 52).

Over ssh only the terminal reaches the user's clipboard; locally a tool is more reliable, since many terminals refuse
OSC 52 silently. tmux drops the sequence by default and has a command of its own.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Callable, Mapping

TOOL_TIMEOUT_S = 2.0
"""Tools hand the text to a background process and exit."""


def clipboard_tools(environ: Mapping[str, str], platform: str) -> list[list[str]]:
    """The tools to try, in order; none over ssh, where each would copy on the wrong machine."""
    tools = []
    if not (environ.get("SSH_CONNECTION") or environ.get("SSH_TTY")):
        if platform == "darwin":
            tools.append(["pbcopy"])
        if environ.get("WAYLAND_DISPLAY"):
            tools.append(["wl-copy"])
        if environ.get("DISPLAY"):
            tools += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if environ.get("TMUX"):
        # -w: also to the terminal's clipboard, which tmux may set when its programs may not
        tools.append(["tmux", "load-buffer", "-w", "-"])
    return tools


def osc52(text: str, environ: Mapping[str, str]) -> str | None:
    """The sequence that makes the terminal copy; None for a terminal that would print it."""
    term = environ.get("TERM", "")
    if term in ("dumb", "linux", ""):
        return None
    sequence = f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07"
    # GNU screen passes on only wrapped sequences.
    return f"\x1bP{sequence}\x1b\\" if environ.get("STY") else sequence


def copy(text: str, environ: Mapping[str, str], platform: str, send: Callable[[str], None]) -> str:
    """Copy and return how: `copied http://localhost:3000 (wl-copy)`."""
    for argv in clipboard_tools(environ, platform):
        if shutil.which(argv[0], path=environ.get("PATH")) and _run(argv, text):
            return f"copied {text} ({argv[0]})"
    sequence = osc52(text, environ)
    if sequence is None:
        return f"cannot copy: this terminal has no clipboard, and there is no wl-copy, xclip or xsel: {text}"
    send(sequence)
    return f"copied {text} (OSC 52: if the terminal allows it)"


def _run(argv: list[str], text: str) -> bool:
    try:
        done = subprocess.run(
            argv,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0

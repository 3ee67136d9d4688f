"""What the two service managers have in common: how programs are run, files replaced, and what a manager can be asked.

Everything is the user's own: nothing here needs root, and nothing is left after `uninstall`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from autoforward.core.errors import AutoforwardError
from autoforward.service.units import Definition
from autoforward.state.locks import replace_file

TIMEOUT_S = 30.0

State = Literal["running", "starting", "failed", "stopped", "unknown"]


class NoManagerError(AutoforwardError):
    """There is no service manager that would start anything for this user."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended: `status` None is one that could not be run or did not end."""

    status: int | None
    output: str


Run = Callable[[Sequence[str]], Done]


def run_quietly(argv: Sequence[str]) -> Done:
    """Run to the end, at most `TIMEOUT_S`; its stdout and stderr."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Done(None, str(error))
    return Done(done.returncode, done.stdout.strip())


@dataclass(frozen=True, slots=True)
class Health:
    """How an installed service does. `detail`: in the manager's words."""

    state: State
    pid: int | None = None
    at_login: bool = True
    detail: str = ""


class Manager(Protocol):
    """`install` and `uninstall` say what they did, a line each; both are idempotent. They raise AutoforwardError."""

    name: str
    path: Path

    def text(self, definition: Definition) -> str: ...
    def program(self) -> str | None: ...
    def check(self) -> None:
        """Raises NoManagerError when no manager would start the service."""

    def install(self, definition: Definition) -> list[str]: ...
    def uninstall(self) -> list[str]: ...
    def health(self) -> Health: ...


def read_definition(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise AutoforwardError(f"{path} cannot be read: {error}") from error


def write_definition(path: Path, text: str) -> None:
    """Replaced as a whole. A link that another tool manages (dotfiles) is replaced by a file, not written through."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [text.encode()])  # for this user alone: a variable may be a secret
    except OSError as error:
        raise AutoforwardError(f"{path} cannot be written: {error.strerror}") from error

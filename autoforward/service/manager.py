"""What both service managers share: running programs, replacing files, and the manager's interface.

Everything belongs to the user: nothing needs root, and `uninstall` leaves nothing.
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
    """No service manager would start anything for this user."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended: `status` None: it could not run or did not end."""

    status: int | None
    output: str


Run = Callable[[Sequence[str]], Done]


def run_quietly(argv: Sequence[str]) -> Done:
    """Run to the end, at most `TIMEOUT_S`, capturing stdout and stderr."""
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
    """The state of an installed service. `detail`: as the manager reports it."""

    state: State
    pid: int | None = None
    at_login: bool = True
    detail: str = ""


class Manager(Protocol):
    """`install` and `uninstall` return what they did, one line each; both are idempotent. They raise AutoforwardError."""

    name: str
    path: Path

    def text(self, definition: Definition) -> str: ...
    def program(self) -> str | None: ...
    def check(self) -> None:
        """Raises NoManagerError if no manager would start the service."""

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
    """Replace the file as a whole. A link managed by another tool (dotfiles) is replaced by a file, not followed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, [text.encode()])  # for this user alone: a variable may be a secret
    except OSError as error:
        raise AutoforwardError(f"{path} cannot be written: {error.strerror}") from error

"""The program's errors, each with an exit code and a hint for the user.

Exceptions of libraries are translated into one of these at the boundary (engine, registry, files). `str(error)` is the
text after `autoforward: error: `, `error.hint` that after `autoforward: hint: `. Exit codes: SPEC.md, "Exit codes".
"""

from __future__ import annotations


class AutoforwardError(Exception):
    """A failure that the user must know about (exit 1)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(AutoforwardError):
    """A bad flag, SPEC or configuration (exit 2)."""

    exit_code = 2


class EngineUnreachableError(AutoforwardError):
    """The engine's endpoint does not answer; the message names it and its source (exit 3)."""

    exit_code = 3


class TargetError(AutoforwardError):
    """The target does not exist or does not run (exit 4)."""

    exit_code = 4


class PortUnavailableError(AutoforwardError):
    """A required host port is not available (exit 5)."""

    exit_code = 5


class ProtocolError(AutoforwardError):
    """Data from a container or the control socket violates the protocol. Ends that session only."""


ERRORS_BY_EXIT_CODE: dict[int, type[AutoforwardError]] = {
    error.exit_code: error
    for error in (AutoforwardError, UsageError, EngineUnreachableError, TargetError, PortUnavailableError)
}

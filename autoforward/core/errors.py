"""The few errors of the program, each with the exit code and the way out that a person gets to see.

Exceptions of libraries are translated into one of these where they cross into our code (engine, registry, files).
`str(error)` is the sentence after `autoforward: error: `; `error.hint` is the one after `autoforward: hint: `.
Exit codes are those of SPEC.md, "Exit codes".
"""

from __future__ import annotations


class AutoforwardError(Exception):
    """Something failed that the user has to know about (exit 1)."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(AutoforwardError):
    """A bad flag, SPEC or configuration (exit 2)."""

    exit_code = 2


class EngineUnreachableError(AutoforwardError):
    """The engine's endpoint does not answer; the message names it and where it came from (exit 3)."""

    exit_code = 3


class TargetError(AutoforwardError):
    """No such target, or it is not running (exit 4)."""

    exit_code = 4


class PortUnavailableError(AutoforwardError):
    """A host port that must be this very number cannot be had (exit 5)."""

    exit_code = 5


class ProtocolError(AutoforwardError):
    """What came out of a container, or over the control socket, is not what was agreed. Ends that session only."""


ERRORS_BY_EXIT_CODE: dict[int, type[AutoforwardError]] = {
    error.exit_code: error
    for error in (AutoforwardError, UsageError, EngineUnreachableError, TargetError, PortUnavailableError)
}

"""The log formatter of every handler: one line per record, without control characters.

A traceback, whose text may be a container's, follows in indented lines: only records begin with a time.
"""

from __future__ import annotations

import logging
from types import TracebackType

from autoforward.core.text import one_line

MAX_TRACEBACK_LINES = 60
"""The first and last lines; a message may contain any number."""

INDENT = "    "

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class RecordFormatter(logging.Formatter):
    """As `logging.Formatter`, with printable lines of bounded length."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # as logging calls it
        return one_line(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    lines = text.split("\n")
    if len(lines) > MAX_TRACEBACK_LINES:
        half = MAX_TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines …", *lines[-half:]]
    return "\n".join(INDENT + one_line(line) for line in lines)


def line_handler(handler: logging.Handler, form: str) -> logging.Handler:
    """Set the formatter of `handler` to this format; returns it."""
    handler.setFormatter(RecordFormatter(form))
    return handler

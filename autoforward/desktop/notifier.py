"""`python -m autoforward.desktop.notifier`: show the one notification that standard input describes, and end.

Input: JSON with `title` and `body`, plain text. The environment names the session's bus. Exit status 0 if it was
handed over, else 1 and the reason as the last line of standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

SEND_TIMEOUT_S = 8.0
"""Less than the supervisor waits, so that the reason is told."""


class _Failures(logging.Handler):
    """The library does not raise: it logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.words: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.words.append(f"{record.getMessage()}: {error!r}" if error else record.getMessage())


def main() -> str | None:
    """None, or why it was not shown: what `sys.exit` takes."""
    request = json.load(sys.stdin)
    failures = _Failures()
    logging.getLogger().addHandler(failures)
    try:
        asyncio.run(_send(str(request["title"]), str(request["body"])))
    except TimeoutError:
        failures.words.append("the desktop does not answer")
    return " ".join(failures.words[-1].split()) if failures.words else None


async def _send(title: str, body: str) -> None:
    from desktop_notifier import DesktopNotifier

    async with asyncio.timeout(SEND_TIMEOUT_S):
        await DesktopNotifier(app_name="autoforward", app_icon=None).send(title=title, message=body)


if __name__ == "__main__":
    sys.exit(main())

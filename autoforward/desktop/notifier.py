"""`python -m autoforward.desktop.notifier`: show the notification on standard input, and exit.

Input: JSON with `title` and `body`, plain text. The environment names the session's bus. Exit status 0 if it was
delivered, else 1 with the reason on the last line of stderr.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

SEND_TIMEOUT_S = 8.0
"""Less than the supervisor's timeout, so that the reason gets through."""


class _Failures(logging.Handler):
    """The library logs errors instead of raising them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.texts.append(f"{record.getMessage()}: {error!r}" if error else record.getMessage())


def main() -> str | None:
    """None, or the reason for `sys.exit`."""
    request = json.load(sys.stdin)
    failures = _Failures()
    logging.getLogger().addHandler(failures)
    try:
        asyncio.run(_send(str(request["title"]), str(request["body"])))
    except TimeoutError:
        failures.texts.append("the desktop does not answer")
    return " ".join(failures.texts[-1].split()) if failures.texts else None


async def _send(title: str, body: str) -> None:
    from desktop_notifier import DesktopNotifier

    async with asyncio.timeout(SEND_TIMEOUT_S):
        await DesktopNotifier(app_name="autoforward", app_icon=None).send(title=title, message=body)


if __name__ == "__main__":
    sys.exit(main())

"""Progress lines on a terminal while something takes longer than a second.

Plain lines, not a spinner: other programs write to the same terminal meanwhile (a devcontainer CLI that builds an
image), and their output must stay readable.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Iterator

from autoforward.cli.console.output import say

FIRST_S = (1, 5, 10, 20, 30)
"""Seconds until each line, then every `THEN_EVERY_S`: most waits are short, and a long one needs few lines."""

THEN_EVERY_S = 30


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Print `what … 5 s` while the block runs; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def report() -> None:
        began_s = time.monotonic()
        for due_s in itertools.chain(FIRST_S, itertools.count(FIRST_S[-1] + THEN_EVERY_S, THEN_EVERY_S)):
            if over.wait(max(0.0, began_s + due_s - time.monotonic())):
                return
            say(f"{what} … {due_s} s" if due_s > 1 else f"{what} …")

    reporter = threading.Thread(target=report, daemon=True, name="progress")
    reporter.start()
    try:
        yield
    finally:
        over.set()
        reporter.join()

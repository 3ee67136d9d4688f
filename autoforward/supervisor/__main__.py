"""`python -m autoforward.supervisor`: daemonize, report `ready` (or the reason of a failure) on the given descriptor,
serve.

The started process forks and exits at once, so that the supervisor is a child of init and leaves no zombie in a
long-lived command.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import logging.handlers
import os
import queue
import resource
import sys
from pathlib import Path
from typing import NoReturn

from autoforward.core.errors import AutoforwardError
from autoforward.core.log_records import line_handler
from autoforward.core.text import one_line
from autoforward.foreign.reader import isolate
from autoforward.state.folder import StatePaths
from autoforward.supervisor.requests import Handlers
from autoforward.supervisor.supervisor import DEFAULT_IDLE_EXIT_S, Supervisor

MAX_LOG_BYTES = 2 * 1024 * 1024
MAX_WAITING_LINES = 10_000
WANTED_DESCRIPTORS = 65_536
"""A relayed connection takes two; a thousand at once on several forwards is an ordinary load test."""

SWITCH_INTERVAL_S = 0.001
"""How long the control loop may hold the GIL, which the data plane needs after every system call: with the default of 5
ms a dozen of these took up to 27 ms while a plan for 4,096 ports was made, with this about 12.
"""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m autoforward.supervisor")
    parser.add_argument("--ready-fd", type=int, required=True)
    ready_fd: int = parser.parse_args().ready_fd
    if os.fork():
        os._exit(0)  # no cleanup: everything belongs to the child now
    os.umask(0o077)
    _take_a_name()
    status = _supervise(ready_fd)
    # Not through the interpreter's exit, which would wait for threads that wait for a hanging engine.
    os._exit(status)


def _take_a_name() -> None:
    """The process name in `ss`, `ps` and `lsof`. Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("autoforward")


def _supervise(ready_fd: int) -> int:
    paths = StatePaths.locate()
    lines: logging.handlers.QueueListener | None = None
    try:
        paths.ensure()
        isolate()
        lines = _start_logging(paths)
        _raise_descriptor_limit()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # Loaded modules stay: a full collection, during which the data plane waits, need not traverse them.
        gc.collect()
        gc.freeze()
        idle_exit_s = float(os.environ.get("AUTOFORWARD_IDLE_EXIT_S", DEFAULT_IDLE_EXIT_S))
        asyncio.run(_serve(paths, idle_exit_s, ready_fd))
    except Exception as error:  # any error belongs in the log: the next command shows its last line
        logging.getLogger(__name__).exception("the supervisor failed")
        hint = error.hint if isinstance(error, AutoforwardError) else None
        _report(ready_fd, f"{one_line(str(error))}\n{one_line(hint or '')}")
        return 1
    finally:
        if lines is not None:
            lines.stop()  # writes the queued records
    return 0


async def _serve(paths: StatePaths, idle_exit_s: float, ready_fd: int) -> None:
    supervisor = Supervisor(paths, lambda made: Handlers(made).by_op(), idle_exit_s=idle_exit_s)
    await supervisor.serve_until_done(lambda: _report(ready_fd, "ready"))


def _report(ready_fd: int, text: str) -> None:
    """Answer the waiting command; a second answer, after it has gone on, is dropped."""
    try:
        os.write(ready_fd, text.encode())
        os.close(ready_fd)
    except OSError:
        logging.getLogger(__name__).debug("no command waits for %r", text)


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Drops lines when the disk is too slow: blocking or keeping all of them would be worse."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            pass


def _start_logging(paths: StatePaths) -> logging.handlers.QueueListener:
    """Start logging. Stop the returned listener at the end, or the last lines are lost."""
    # UTF-8 whatever the locale, because `logs` reads it so.
    handler = logging.handlers.RotatingFileHandler(
        paths.supervisor_log, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    # Written by a separate thread: a slow disk must not delay the control loop.
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
    listener = logging.handlers.QueueListener(lines, handler)
    listener.start()
    # The queue handler formats; the thread writes what it gets.
    queued = line_handler(_BoundedQueueHandler(lines), "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.basicConfig(handlers=[queued], level=os.environ.get("AUTOFORWARD_LOG_LEVEL", "INFO").upper())
    logging.captureWarnings(True)
    return listener


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    main()

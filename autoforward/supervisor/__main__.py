"""`python -m autoforward.supervisor`: detach, say `ready` (or why not) on the given descriptor, serve.

The process that was started forks and ends at once, so that the supervisor is a child of init and leaves no zombie in a
command that lives long.
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
"""How long the control loop may keep the interpreter from the data plane, which asks for it after every system call: with
the default of 5 ms a dozen of these took up to 27 ms while a plan for 4,096 ports was made, with this some 12."""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m autoforward.supervisor")
    parser.add_argument("--ready-fd", type=int, required=True)
    ready_fd: int = parser.parse_args().ready_fd
    if os.fork():
        os._exit(0)  # no clean-up: everything belongs to the child now
    os.umask(0o077)
    _take_a_name()
    status = _supervise(ready_fd)
    # Not by way of the interpreter's own end: that would wait for threads that wait for an engine which hangs.
    os._exit(status)


def _take_a_name() -> None:
    """What `ss`, `ps` and `lsof` call us: our listeners are no nameless python's. Linux only."""
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
        # What is loaded stays: a full collection, for which the data plane waits, need not walk over it each time.
        gc.collect()
        gc.freeze()
        idle_exit_s = float(os.environ.get("AUTOFORWARD_IDLE_EXIT_S", DEFAULT_IDLE_EXIT_S))
        asyncio.run(_serve(paths, idle_exit_s, ready_fd))
    except Exception as error:  # whatever it is, its place is the log: who asks next is told its last line
        logging.getLogger(__name__).exception("the supervisor failed")
        hint = error.hint if isinstance(error, AutoforwardError) else None
        _tell(ready_fd, f"{one_line(str(error))}\n{one_line(hint or '')}")
        return 1
    finally:
        if lines is not None:
            lines.stop()  # which writes those that wait
    return 0


async def _serve(paths: StatePaths, idle_exit_s: float, ready_fd: int) -> None:
    supervisor = Supervisor(paths, lambda made: Handlers(made).by_op(), idle_exit_s=idle_exit_s)
    await supervisor.serve_until_done(lambda: _tell(ready_fd, "ready"))


def _tell(ready_fd: int, word: str) -> None:
    """Answer the command that waits; a second word, after it has gone on, is dropped."""
    try:
        os.write(ready_fd, word.encode())
        os.close(ready_fd)
    except OSError:
        logging.getLogger(__name__).debug("no command waits for %r", word)


class _BoundedQueueHandler(logging.handlers.QueueHandler):
    """Lines that the disk cannot keep up with are dropped: waiting for it, or holding all of them, would be worse."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            pass


def _start_logging(paths: StatePaths) -> logging.handlers.QueueListener:
    """Stop what it returns at the end, or its last lines are lost."""
    # UTF-8 whatever the locale of the command that started it: `logs` reads it so.
    handler = logging.handlers.RotatingFileHandler(
        paths.supervisor_log, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
    )
    # Written by a thread of its own: a slow disk must not hold up the control loop.
    lines: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING_LINES)
    listener = logging.handlers.QueueListener(lines, handler)
    listener.start()
    # It formats the record before the thread does, which writes what it is given.
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

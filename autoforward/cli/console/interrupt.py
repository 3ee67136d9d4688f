"""Turn Ctrl-C and SIGTERM into an exception in commands that keep running.

Python handles a signal between two bytecodes. One that arrives after the last of these and before the system call would
be handled after the next message of the supervisor, maybe tomorrow: so commands wait with `wait_for`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from types import FrameType

from autoforward.net.poller import wait_readable


class Interrupted(BaseException):
    """The user wants to stop. Not an `Exception`: others catch those (click does, around `isatty`)."""


_woken: list[int] = []
"""Receives a byte for each signal while `interruptible` is active."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, each SIGINT and SIGTERM raises Interrupted. Main thread only."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, _interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    wakes = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _woken.append(reader)
    try:
        yield
    finally:
        _woken.remove(reader)
        signal.set_wakeup_fd(wakes)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def wait_for(sock: socket.socket) -> None:
    """Block until `sock` is readable or at EOF; a signal raises its exception here at once."""
    while sock.fileno() not in (ready := wait_readable(sock.fileno(), *_woken)):
        for descriptor in ready:
            os.read(descriptor, 4096)  # the signal was handled before, or is within the next bytecode


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted

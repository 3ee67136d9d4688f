"""Turn Ctrl-C and SIGTERM into an exception in commands that keep running, also just before a wait begins.

Python hears a signal between two steps of its own. One that comes after the last of them and before the system call would
be heard with the next message of the supervisor, which may be tomorrow: so waiting is done with `wait_for`.
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
    """The person wants an end. No `Exception`: those are caught by others (click does, around `isatty`)."""


_woken: list[int] = []
"""Where a byte comes with each signal, while there is an `interruptible`."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, each SIGINT and SIGTERM raises Interrupted. For the main thread."""
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
    """Until there is something to be read, or the end of it; a signal's exception comes out of here at once."""
    while sock.fileno() not in (ready := wait_readable(sock.fileno(), *_woken)):
        for descriptor in ready:
            os.read(descriptor, 4096)  # the signal has been heard before, or is within the next step


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted

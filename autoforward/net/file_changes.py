"""Report that something changed in a folder, without its name, which a container chooses.

A writer can rename a file thousands of times a second, so each folder reports once (IN_ONESHOT).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
from collections.abc import Iterable

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM, IN_MOVED_TO = 0x40, 0x80
IN_CREATE, IN_DELETE = 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF = 0x400, 0x800
IN_ONLYDIR, IN_ONESHOT = 0x1000000, 0x80000000

MASK = (
    IN_MODIFY
    | IN_CLOSE_WRITE
    | IN_MOVED_FROM
    | IN_MOVED_TO
    | IN_CREATE
    | IN_DELETE
    | IN_DELETE_SELF
    | IN_MOVE_SELF
    | IN_ONLYDIR
    | IN_ONESHOT
)

_LIBC = ctypes.CDLL(None, use_errno=True)
HAS_INOTIFY = hasattr(_LIBC, "inotify_init1")
"""Linux only; elsewhere files are polled."""


class Changes:
    """`happened` is set, on the loop, after a change in a folder of `watch`. Close with `close`."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._fd = _checked(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._loop.add_reader(self._fd, self._on_readable)

    def watch(self, folders: Iterable[str]) -> None:
        """May block on a mount: call it in a thread. A missing or unreadable folder is skipped. Raises OSError."""
        for folder in folders:
            try:
                _checked(_LIBC.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(MASK)))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
                    raise

    def _on_readable(self) -> None:
        self._loop.remove_reader(self._fd)
        self.happened.set()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result

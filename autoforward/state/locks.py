"""Lock files: private, created on first use, never deleted, and exclusive among threads as well as processes.
And the files under such locks, which are only replaced as a whole.

POSIX locks belong to the process: two threads (even two lock objects) would both get one, and closing any descriptor of
the file would release it for both. So each lock file has one thread lock per process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import fasteners

CANNOT_WRITE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
"""OSErrors of the disk's state or permissions, which do not pass by themselves."""

_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()


def lock_file(path: Path) -> fasteners.InterProcessLock:
    """A lock on this file, not acquired yet. Raises OSError if it cannot be created.

    Not to be called while this process holds the lock: closing the file anywhere in the process would release it.
    """
    import fasteners

    # fasteners would create it with the umask's mode.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return fasteners.InterProcessLock(str(path))


def acquire(lock: fasteners.InterProcessLock, timeout_s: float) -> bool:
    """Wait for the lock, among processes. On a timeout nothing stays open."""
    acquired = False
    try:
        acquired = bool(lock.acquire(delay=0.005, max_delay=0.05, timeout=timeout_s))
    finally:
        # fasteners keeps the file open then, and closing it later would release the next lock.
        if not acquired and lock.lockfile is not None:
            lock.lockfile.close()
    return acquired


def replace_file(path: Path, chunks: Iterable[bytes], *, durable: bool = False) -> None:
    """Private temporary file, rename: a reader without the lock sees either the old content or the new. Raises OSError.

    With `durable` the new content survives a power cut from here on.
    """
    # One fixed name: the lock makes this the only writer, and a killed writer's file is overwritten.
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.writelines(chunks)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power failure. Some file systems have no fsync for folders (EINVAL)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock, exclusive among threads and processes. Raises TimeoutError, OSError."""
    real = Path(os.path.realpath(path))
    with _thread_locks_guard:
        thread_lock = _thread_locks.setdefault(str(real), threading.Lock())
    deadline_s = time.monotonic() + timeout_s
    if not thread_lock.acquire(timeout=timeout_s):
        raise TimeoutError
    try:
        lock = lock_file(real)
        if not acquire(lock, max(0.0, deadline_s - time.monotonic())):
            raise TimeoutError
        try:
            yield
        finally:
            lock.release()
    finally:
        thread_lock.release()

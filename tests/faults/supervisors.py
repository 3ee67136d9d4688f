"""The supervisor of a test, and its violent end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

import psutil

from tests.conftest import supervisor_of


def the_supervisor(home: Path) -> psutil.Process:
    process = supervisor_of(home)
    assert process is not None, "there is no supervisor"
    return process


def kill_9(process: psutil.Process) -> None:
    """Kill it and wait for its end; not until pid 1 reaps it, which takes a second or two."""
    pidfd = os.pidfd_open(process.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 20)[0], f"{process} lives on"
    finally:
        os.close(pidfd)


def descriptors(process: psutil.Process) -> int:
    """How many it holds. The one inotify that watches configuration files is not counted, a second one would be: it is closed
    and opened at each look at the files, and so may be missing for a moment at any time."""
    links = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(path.readlink()))
    return len(links) - min(1, links.count("anon_inode:inotify"))

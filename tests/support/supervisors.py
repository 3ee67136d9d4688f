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


ENGINE_CONNECTIONS = 20
"""Idle ones that the client of the engine keeps: how many it has opened depends on what other containers do meanwhile."""


def descriptors(process: psutil.Process) -> int:
    """How many it holds, without what comes and goes by itself: idle connections to the engine and one inotify.

    The inotify that watches configuration files is closed and opened at each read of them; a second one is counted.
    """
    links = []
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(path.readlink()))
    rows = Path(f"/proc/{process.pid}/net/unix").read_text().splitlines()[1:]
    unix = {f"socket:[{row.split()[6]}]" for row in rows}.intersection(links)
    return len(links) - min(1, links.count("anon_inode:inotify")) - min(ENGINE_CONNECTIONS, len(unix))

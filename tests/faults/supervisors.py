"""The supervisor of a test, and its violent end."""

from __future__ import annotations

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

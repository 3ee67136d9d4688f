"""`autoforward restart`: replace the supervisor; sessions and host ports stay."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

from autoforward import __version__
from autoforward.cli.console import output, supervisor_client
from autoforward.control.start import connect_to_supervisor, ensure_supervisor
from autoforward.core.errors import AutoforwardError
from autoforward.net.peercred import peer_of
from autoforward.state.folder import StatePaths


def restart_supervisor() -> int:
    """Exit status 1 if a forward has another host port afterwards, or none."""
    paths = StatePaths.locate()
    sock = connect_to_supervisor(paths)
    if sock is None and not supervisor_client.has_stored_sessions(paths):
        output.say("Nothing to restart: no supervisor is running, and there is no session to take up.")
        return 0
    before: list[dict[str, Any]] = []
    if sock is not None:
        with sock:
            _check_nothing_is_lost()
            before = supervisor_client.list_rows(any_version=True)
            pid = _listener_of(sock)
            output.say(f"Ending the supervisor (pid {pid}); open connections have 5 s …")
            os.kill(pid, signal.SIGTERM)
            # It hangs up once it has ended everything; the next one waits for its lock.
            sock.settimeout(None)
            sock.recv(1)
    ensure_supervisor(paths).close()
    return _compare(before, supervisor_client.list_rows())


def _check_nothing_is_lost() -> None:
    """Raises AutoforwardError while the supervisor holds changes that are not on disk."""
    status = supervisor_client.ask({"op": "status"}, start=False, any_version=True) or {}
    if problem := status.get("registry_problem"):
        raise AutoforwardError(f"not restarted, what has changed would be forgotten: {problem}")


def _compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> int:
    now = {row["id"]: row for row in after if row["id"] is not None}
    held = [row for row in before if row["id"] is not None and row["localPort"] is not None]
    lost = [row for row in held if now.get(row["id"], {}).get("localPort") != row["localPort"]]
    for row in lost:
        output.warn(f"host port {row['localPort']} of {output.describe_mapping(row)} is not there any more")
    same = len(held) - len(lost)
    output.say(f"Restarted: version {__version__}, {same} forward(s) on the same host ports.")
    return 1 if lost else 0


def _listener_of(sock: socket.socket) -> int:
    """The pid at the other end of the control socket."""
    pid = peer_of(sock).pid
    if pid is None:
        raise AutoforwardError("the system does not say which process the supervisor is")
    return pid

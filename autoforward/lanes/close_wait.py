"""Detect that a relay's server has closed, for tools that do not report it: their socket is in CLOSE_WAIT.

Pure bookkeeping for one session. Watcher frames show CLOSE_WAIT sockets by inode; the watcher is asked which inode a
relay holds once per relay, and only when a frame shows a socket that could be the relay's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoforward.detection.proc_net import SocketRow


@dataclass(slots=True)
class _OpenRelay:
    container_pid: int
    relay_token: str
    dialled_ports: frozenset[int]
    inodes: frozenset[int] | None = None
    asked: bool = False


class CloseWaitTracker:
    def __init__(self) -> None:
        self._relays: dict[int, _OpenRelay] = {}
        self._waiting: dict[int, int] = {}

    def started(self, relay_id: int, container_pid: int, relay_token: str, dialled_ports: frozenset[int]) -> None:
        """A relay's process runs (again for each address that it tries)."""
        self._relays[relay_id] = _OpenRelay(container_pid, relay_token, dialled_ports)

    def ended(self, relay_id: int) -> None:
        self._relays.pop(relay_id, None)

    def frame(self, rows: Sequence[SocketRow]) -> tuple[list[int], list[tuple[int, str]]]:
        """Relays whose server has closed, and (pid, token) of those whose sockets must be queried."""
        self._waiting = {row.inode: row.remote_port for row in rows if row.state == "close_wait" and row.inode}
        ports = set(self._waiting.values())
        questions = []
        for relay in self._relays.values():
            if relay.inodes is None and not relay.asked and relay.dialled_ports & ports:
                relay.asked = True
                questions.append((relay.container_pid, relay.relay_token))
        return self._closed(), questions

    def answer(self, container_pid: int, inodes: Sequence[int]) -> list[int]:
        """The watcher's answer about a process's sockets; returns relays whose server has closed."""
        for relay in self._relays.values():
            if relay.container_pid == container_pid:
                relay.asked = False
                relay.inodes = frozenset(inodes) or None
        return self._closed()

    def _closed(self) -> list[int]:
        closed = []
        for relay_id, relay in self._relays.items():
            for inode in relay.inodes or ():
                if self._waiting.get(inode) in relay.dialled_ports:
                    closed.append(relay_id)
        for relay_id in closed:
            del self._relays[relay_id]
        return closed

"""The processes that own ports: sockets of the last snapshot, and the names that the container sent for them.

Names follow the snapshot that first showed a socket, once each; on a shell lane they may overtake it. A port whose
process was not found maps to None; one without an answer yet is missing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import islice

from autoforward.agent_protocol.frames import MAX_COMMAND
from autoforward.core.js_regex import MAX_SUBJECT_LENGTH
from autoforward.core.masking.command_line import mask_command_line
from autoforward.core.model import ForwardKey, ServerProcess
from autoforward.core.text import printable
from autoforward.detection.proc_net import SocketRow

MAX_EARLY = 256
"""Names kept for sockets that no snapshot has shown yet."""

MAX_SHELL_COMMAND = 768
"""Bytes of a command line that the shell watcher reads (lanes/watcher.sh)."""

CUT_LENGTHS = frozenset({MAX_COMMAND, MAX_SHELL_COMMAND})
"""Ends a command line that the agent or the watcher has cut."""


class ProcessBook:
    """Bounded by a snapshot's size: names of closed sockets are dropped."""

    def __init__(self) -> None:
        self._sockets: dict[ForwardKey, tuple[int, ...]] = {}
        self._inodes: frozenset[int] = frozenset()
        self._names: dict[int, ServerProcess | None] = {}
        self._early: dict[int, ServerProcess | None] = {}

    def __repr__(self) -> str:
        return f"<ProcessBook: {len(self._names)} of {len(self._inodes)} sockets known>"

    def see(self, rows: Iterable[SocketRow]) -> None:
        """Replace the current sockets."""
        sockets: dict[ForwardKey, list[int]] = {}
        for row in rows:
            if row.state == "listen":
                sockets.setdefault(ForwardKey(row.transport, None, row.local_port), []).append(row.inode)
        self._sockets = {key: tuple(inodes) for key, inodes in sockets.items()}
        self._inodes = frozenset(inode for inodes in sockets.values() for inode in inodes)
        known = self._early | self._names
        self._names = {inode: known[inode] for inode in self._inodes & known.keys()}
        self._early = {inode: name for inode, name in self._early.items() if inode not in self._inodes}

    def note(self, inode: int, pid: int, command_line: bytes) -> bool:
        """Record the container's answer for one socket (`pid` 0: not found). Returns whether it is new, for a current socket."""
        name = parse_process(command_line) if pid else None
        if inode not in self._inodes:
            self._early[inode] = name
            for oldest in list(islice(self._early, max(0, len(self._early) - MAX_EARLY))):
                del self._early[oldest]
            return False
        is_news = inode not in self._names or self._names[inode] != name
        self._names[inode] = name
        return is_news

    def by_port(self) -> Mapping[ForwardKey, ServerProcess | None]:
        """The process of each port for which it is known, or known to be unknown."""
        found: dict[ForwardKey, ServerProcess | None] = {}
        for key, inodes in self._sockets.items():
            # A socket that no process holds any more has inode 0.
            names = [self._names.get(inode) for inode in inodes if inode == 0 or inode in self._names]
            name = next((name for name in names if name is not None), None)
            if name is not None or len(names) == len(inodes):
                found[key] = name
        return found


@lru_cache(maxsize=256)
def parse_process(command_line: bytes) -> ServerProcess | None:
    """Parse /proc/PID/cmdline (arguments separated by NUL, from a container); None if it is empty.

    Cached: masking takes about 0.4 ms, and one process may hold thousands of sockets.
    """
    arguments = [
        printable(one, " ") for one in command_line.decode("utf-8", "replace")[:MAX_SUBJECT_LENGTH].split("\0")
    ]
    text = " ".join(arguments).strip()
    shown = mask_command_line("\0".join(arguments), cut=len(command_line) in CUT_LENGTHS)
    return ServerProcess(text, shown) if text else None

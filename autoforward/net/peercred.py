"""Peer credentials of a Unix socket, from the kernel: a file could be stale, or another user's."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass

_SOL_LOCAL, _LOCAL_PEERPID = 0, 2
"""From <sys/un.h> of macOS."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The peer's process and user. For a server: when it began to listen."""

    pid: int | None
    uid: int | None

    @property
    def is_trusted(self) -> bool:
        """Whether the peer is this user or root; True if the system does not say (then the folder's mode protects)."""
        return self.uid is None or self.uid in (os.geteuid(), 0)


def peer_of(sock: socket.socket) -> Peer:
    """Raises OSError if the socket is not connected."""
    if sys.platform == "linux":
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(pid or None, uid)
    else:  # noqa: RET505  # mypy checks one platform at a time
        (pid,) = struct.unpack("i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
        return Peer(pid or None, None)

"""Peer credentials of a Unix socket, from the kernel: a file could be old, or another user's."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass

_SOL_LOCAL, _LOCAL_PEERPID = 0, 2
"""Of <sys/un.h> of macOS."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What the system tells of it. Of a server: as it was when it began to listen."""

    pid: int | None
    uid: int | None

    @property
    def is_trusted(self) -> bool:
        """Ours or root's, who can do what we can; so is one of whom the system does not tell (then the folder's mode counts)."""
        return self.uid is None or self.uid in (os.geteuid(), 0)


def peer_of(sock: socket.socket) -> Peer:
    """Raises OSError for a socket that is not connected."""
    if sys.platform == "linux":
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer(pid or None, uid)
    else:  # noqa: RET505  # mypy knows one platform at a time
        (pid,) = struct.unpack("i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
        return Peer(pid or None, None)

"""Has the client closed its socket, or only shut down its sending side? TCP sends the same FIN for both.

The kernel knows: on Linux a local client's own row in /proc/net/tcp{,6} loses its inode once no descriptor holds the
socket. Elsewhere, and for clients of other machines, nothing can be told and nobody is reported.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_TABLES = {socket.AF_INET: "/proc/net/tcp", socket.AF_INET6: "/proc/net/tcp6"}

_CLOSE = 7
"""TCP_CLOSE of <netinet/tcp_states.h>: our own side, after a reset."""


def closed_peers(sockets: Iterable[socket.socket]) -> set[socket.socket]:
    """Those of the connected server-side sockets whose client, on this host, holds its end no more. Never raises."""
    if sys.platform != "linux":
        return set()
    gone: set[socket.socket] = set()
    tables: dict[int, bytes] = {}
    for sock in sockets:
        try:
            if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE:
                gone.add(sock)
                continue
            ours, theirs = sock.getsockname(), sock.getpeername()
            if sock.family not in tables:
                tables[sock.family] = Path(_TABLES[socket.AddressFamily(sock.family)]).read_bytes()
        except (OSError, KeyError):
            # ENOTCONN: reset already. An unreadable table tells nothing; the other sockets may be of the other family.
            if sock.fileno() >= 0 and sock.family not in tables:
                tables.setdefault(sock.family, b"")
            continue
        inode = _inode(tables[sock.family], row_token(sock.family, theirs, ours))
        if inode == b"0":
            gone.add(sock)
    return gone


def row_token(family: int, local: tuple[str, int], remote: tuple[str, int]) -> bytes:
    """The `local remote ` columns of a row of /proc/net/tcp{,6}, as the kernel prints them."""
    return f" {_hex(family, local)} {_hex(family, remote)} ".encode()


def _hex(family: int, address: tuple[str, int]) -> str:
    packed = socket.inet_pton(family, address[0])
    # Each 32-bit word is printed as a number of the host's own byte order.
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"


def _inode(table: bytes, token: bytes) -> bytes | None:
    """The inode column of the row that starts with `token`: 0 once nothing holds the socket, None without a row."""
    start = table.find(token)
    if start < 0:
        return None
    columns = table[start + len(token) : table.find(b"\n", start)].split()
    # st tx:rx tr:when retrnsmt uid timeout inode
    return columns[6] if len(columns) > 6 else None

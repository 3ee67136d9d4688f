"""Tell a client's close() from its shutdown(SHUT_WR) and from a reset.

TCP sends the same FIN for close and shutdown. The kernel knows more: on Linux the row of a local client in
/proc/net/tcp{,6} loses its inode once no descriptor holds the socket. Elsewhere, and for clients of other machines,
the cases are indistinguishable, and no client is reported.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from autoforward.dataplane.relay import Relay
from autoforward.net.loop import Loop, Timer

_TABLES = {socket.AF_INET: "/proc/net/tcp", socket.AF_INET6: "/proc/net/tcp6"}

_CLOSE = 7
"""TCP_CLOSE of <netinet/tcp_states.h>: the state of this side after a reset."""


def closed_peers(sockets: Iterable[socket.socket]) -> set[socket.socket]:
    """Those connected server-side sockets whose client, on this host, has closed its end. Never raises."""
    if sys.platform != "linux":
        return set()
    gone: set[socket.socket] = set()
    tables: dict[socket.AddressFamily, bytes] = {}
    for sock in sockets:
        try:
            ours, theirs = sock.getsockname(), sock.getpeername()
        except OSError:  # ENOTCONN: reset, which `reset_peers` reports
            continue
        for family, local, remote in _client_rows(sock, theirs, ours):
            if family not in tables:
                tables[family] = _read_table(family)
            inode = _inode(tables[family], row_token(family, local, remote))
            if inode is not None:
                if inode == b"0":
                    gone.add(sock)
                break
    return gone


def _client_rows(
    sock: socket.socket, theirs: tuple[str, int], ours: tuple[str, int]
) -> Iterator[tuple[socket.AddressFamily, tuple[str, int], tuple[str, int]]]:
    """Where the client's end may be listed, as (table, its address, the server's)."""
    yield socket.AddressFamily(sock.family), theirs, ours
    if sock.family == socket.AF_INET:  # some clients (every JVM) connect to v4 addresses with v6 sockets
        yield socket.AF_INET6, ("::ffff:" + theirs[0], theirs[1]), ("::ffff:" + ours[0], ours[1])


def _read_table(family: socket.AddressFamily) -> bytes:
    try:
        return Path(_TABLES[family]).read_bytes()
    except (OSError, KeyError):  # unreadable: no client is reported
        return b""


def reset_peers(sockets: Iterable[socket.socket]) -> set[socket.socket]:
    """Those connected sockets that were reset, which otherwise only a read or write shows. Never raises."""
    if sys.platform != "linux":
        return set()
    return {sock for sock in sockets if _is_reset(sock)}


def _is_reset(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE
    except OSError:
        return True


def row_token(family: int, local: tuple[str, int], remote: tuple[str, int]) -> bytes:
    """The `local remote ` columns of a row of /proc/net/tcp{,6}, as the kernel prints them."""
    return f" {_hex(family, local)} {_hex(family, remote)} ".encode()


def _hex(family: int, address: tuple[str, int]) -> str:
    packed = socket.inet_pton(family, address[0])
    # Each 32-bit word is printed as a number in host byte order.
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


class ClosedClientPoller:
    """Polls clients that are not being read: there a reset does not show, and a full close looks like a half-close."""

    def __init__(self, loop: Loop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._relays: set[Relay] = set()
        self._timer: Timer | None = None

    def watch(self, relay: Relay) -> None:
        """Until the relay reads again or ends."""
        self._relays.add(relay)
        if self._timer is None:
            self._timer = self._loop.call_later(self._interval_s, self._poll)

    def forget(self, relay: Relay) -> None:
        self._relays.discard(relay)

    def _poll(self) -> None:
        self._timer = None
        self._relays = {relay for relay in self._relays if not relay.is_reading}
        clients = {relay.client: relay for relay in self._relays if relay.client is not None}
        for client in reset_peers(clients):
            clients.pop(client).cut("the client broke off")
        # Only after a client's FIN has it sent everything.
        for client in closed_peers(client for client, relay in clients.items() if relay.client_ended):
            self._relays.discard(clients[client])
            clients[client].client_has_gone()
        if self._relays:
            self._timer = self._loop.call_later(self._interval_s, self._poll)

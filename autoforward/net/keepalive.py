"""TCP keepalive: the kernel probes idle connections and closes dead ones.

For connections to other machines. Locally a connection ends with its peer's process; remotely a cable is unplugged, a
laptop sleeps, a router forgets. (The agent is also pinged every few seconds, and pings back.)
"""

from __future__ import annotations

import ipaddress
import socket

KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3


def keepalive_options() -> list[tuple[int, int, int]]:
    """Options for `setsockopt`: a silently lost peer is noticed within half a minute, where the system can."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def keep_alive(sock: socket.socket) -> None:
    for option in keepalive_options():
        sock.setsockopt(*option)


def leaves_this_machine(sock: socket.socket) -> bool:
    """Whether a bound TCP socket can have a peer on another machine."""
    return not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback

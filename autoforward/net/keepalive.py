"""TCP keepalive: the kernel probes idle connections and breaks off dead ones.

For those that leave this machine. On its own a connection ends with the process at the other end; elsewhere a cable is
drawn, a laptop goes to sleep, a router forgets. (An agent is asked every few seconds besides, and asks us.)
"""

from __future__ import annotations

import ipaddress
import socket

KEEPALIVE_IDLE_S = 15
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3


def keepalive_options() -> list[tuple[int, int, int]]:
    """For `setsockopt`: a peer that is gone without a word is noticed within half a minute, where the system can."""
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
    """Whether a bound TCP socket can have a peer elsewhere."""
    return not ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback

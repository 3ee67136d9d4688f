"""Text of /proc/net/tcp{,6} -> listeners -> snapshot, and where a relay should dial. Pure; works on bytes.

Input is kernel text read in the container, or the shell watcher's reduced rows, which keep the kernel's column order
(so one parser serves both). It is hostile until parsed: what does not match is skipped and counted, and every loop has
a named limit.

Rows are found by the token `:0000 0A ` (remote port 0, state LISTEN), never by offset: columns move at row 10,000.
Bench, 50,000 connection rows and 20 listeners, one core of a laptop-class machine: splitting every row 142 ms,
searching for the token and splitting only the hits 9 ms.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from autoforward.agent_protocol.frames import MAX_ADDRESSES
from autoforward.core.addresses import WILDCARDS, is_loopback
from autoforward.core.model import DialAddress, Listener, Snapshot, Transport

SocketState = Literal["listen", "close_wait"]

MAX_ROWS = 4096
"""Rows taken from one table. A dev container has tens; beyond this `truncated` is set."""

MAX_LINE = 512
"""Bytes of one row. The kernel pads to 150 (v4) or 180 (v6); longer lines are not the kernel's."""

ENGINE_DNS = "127.0.0.11"
"""Docker's embedded DNS: in every container on a user-defined network, on a random port, never a user's server."""

MAX_DIALS = MAX_ADDRESSES
"""Addresses tried for one port: the most that one OPEN holds. A server on more of them is on these too."""

_LISTEN_TOKEN = b":0000 0A "
_CLOSE_WAIT_TOKEN = b" 08 "
_STATE_NAMES: dict[bytes, SocketState] = {b"0A": "listen", b"08": "close_wait"}
# Columns of a row after split(): sl, local, remote, st, queues, timer, retransmits, uid, timeout, inode, ...
_LOCAL, _REMOTE, _STATE, _UID, _INODE = 1, 2, 3, 7, 9
_MIN_COLUMNS = 10


@dataclass(frozen=True, slots=True, order=True)
class SocketRow:
    """One socket of the table. Addresses are text (`127.0.0.1`, `::1`; v4-mapped ones as v4).

    `inode` identifies the owning process through `/proc/<pid>/fd`; 0: unknown.
    """

    local_port: int
    local_address: str
    remote_address: str
    remote_port: int
    state: SocketState
    uid: int
    inode: int
    transport: Transport = "tcp"


@dataclass(frozen=True, slots=True)
class SocketTable:
    """The result of one text: `rows` in its order, `malformed` lines skipped, `truncated` if MAX_ROWS was reached."""

    rows: tuple[SocketRow, ...]
    malformed: int
    truncated: bool

    @property
    def listening(self) -> tuple[SocketRow, ...]:
        return tuple(row for row in self.rows if row.state == "listen")

    @property
    def close_wait(self) -> tuple[SocketRow, ...]:
        return tuple(row for row in self.rows if row.state == "close_wait")


def parse_proc_net_tcp(data: bytes, *, close_wait: bool = False) -> SocketTable:
    """Rows in state LISTEN (with `close_wait`, also CLOSE_WAIT) of /proc/net/tcp, tcp6, or both concatenated.

    Never raises. Cost is that of `bytes.find` over `data` plus the hits.
    """
    rows: list[SocketRow] = []
    malformed = 0
    truncated = False
    for token in (_LISTEN_TOKEN, _CLOSE_WAIT_TOKEN) if close_wait else (_LISTEN_TOKEN,):
        # Malformed lines count against the limit too: a flood of them must not cause unbounded work.
        budget = MAX_ROWS
        at = data.find(token)
        while at >= 0:
            if budget == 0:
                truncated = True
                break
            budget -= 1
            start = data.rfind(b"\n", max(0, at - MAX_LINE), at) + 1
            end = data.find(b"\n", at, at + MAX_LINE)
            if end < 0:
                end = min(len(data), at + MAX_LINE)
            # No newline within MAX_LINE before the hit: longer than any line of the kernel.
            whole = start > 0 or at <= MAX_LINE
            row = _parse_row(data[start:end]) if whole and end - start <= MAX_LINE else None
            if row is None:
                malformed += 1
            elif (row.state == "listen") == (token is _LISTEN_TOKEN):
                rows.append(row)
            at = data.find(token, max(end, at + len(token)))
    return SocketTable(tuple(rows), malformed, truncated)


def snapshot_from_rows(rows: Iterable[SocketRow], own_addresses: Iterable[str] = ()) -> Snapshot:
    """The listeners among `rows` that a relay in the container can reach; sorted, without duplicates. See `is_reachable`."""
    own = frozenset(own_addresses)
    found = {
        (row.transport, row.local_port, row.local_address)
        for row in rows
        if row.state == "listen" and row.local_port != 0 and is_reachable(row.local_address, own)
    }
    return tuple(Listener(*fields) for fields in sorted(found))  # tuples compare without a call each


def is_reachable(address: str, own_addresses: frozenset[str] = frozenset()) -> bool:
    """Whether `address` is the container's own: 127/8, ::1, a wildcard, or in `own_addresses`; the engine's DNS is not.

    `own_addresses` are the container's addresses as text, in canonical form.
    """
    if address == ENGINE_DNS:
        return False
    return address in WILDCARDS or is_loopback(address) or address in own_addresses


def dial_addresses(
    addresses: Iterable[str], container_port: int, *, from_ipv6: bool = False
) -> tuple[DialAddress, ...]:
    """Where to connect for the listeners of one port, in the order to try.

    A v4 wildcard is 127.0.0.1; `::` may be dual-stack or v6-only, which the table does not show: 127.0.0.1, then ::1.
    Plain loopback comes first, specific addresses last, MAX_DIALS in all. No addresses give an empty tuple.
    `from_ipv6`: for clients of the host's IPv6 address. Listeners of both families on one port may be two servers: such
    a client gets the IPv6 one first, as it would in the container.
    """
    seen = set(addresses)
    order: list[str] = []
    if seen & {"127.0.0.1", "0.0.0.0", "::"}:
        order.append("127.0.0.1")
    if seen & {"::1", "::"}:
        order.insert(0 if from_ipv6 and seen & {"127.0.0.1", "0.0.0.0"} else 1, "::1")
    order += sorted(seen - {"127.0.0.1", "0.0.0.0", "::", "::1"}, key=lambda text: (":" in text, text))
    return tuple(DialAddress(host, container_port) for host in order[:MAX_DIALS])


def _parse_row(line: bytes) -> SocketRow | None:
    columns = line.split(None, _MIN_COLUMNS)
    if len(columns) < _MIN_COLUMNS:
        return None
    state = _STATE_NAMES.get(columns[_STATE])
    local = _parse_endpoint(columns[_LOCAL])
    remote = _parse_endpoint(columns[_REMOTE])
    uid, inode = columns[_UID], columns[_INODE]
    if state is None or local is None or remote is None:
        return None
    # Digits of bounded length: int() of a megabyte of digits is quadratic.
    if not (uid.isdigit() and inode.isdigit() and len(uid) <= 10 and len(inode) <= 20):
        return None
    return SocketRow(local[1], local[0], remote[0], remote[1], state, int(uid), int(inode))


def _parse_endpoint(text: bytes) -> tuple[str, int] | None:
    """`0100007F:0BB8` -> ("127.0.0.1", 3000); 32 digits before the colon for v6; None for anything else."""
    digits, colon, port = text.partition(b":")
    if not colon or len(port) != 4 or len(digits) not in (8, 32):
        return None
    try:
        # bytes.fromhex skips spaces and takes only ASCII digits; split() has removed spaces.
        raw = bytes.fromhex(digits.decode("ascii"))
        number = int.from_bytes(bytes.fromhex(port.decode("ascii")), "big")
    except ValueError:
        return None
    if len(raw) * 2 != len(digits):
        return None
    # The kernel prints each 32-bit word in host order: little-endian on every platform that runs these containers.
    packed = b"".join(raw[word : word + 4][::-1] for word in range(0, len(raw), 4))
    if len(packed) == 4:
        return str(ipaddress.IPv4Address(packed)), number
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address), number

"""The agent's side of the protocol, as the host needs it for tests alone: what a host says parsed, what an agent says encoded.

What a host says is encoded by `agent_protocol.decoder`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Literal, NamedTuple

from autoforward.agent_protocol import decoder, frames, payloads
from autoforward.agent_protocol.decoder import (
    _TRANSPORT_NUMBERS,
    _VALUE_FRAME,
    _frame,
    encode_open_payload,
    open_payload,
)
from autoforward.agent_protocol.frames import (
    BYE,
    BYE_REASONS,
    CREDIT,
    DIRECT,
    EOF,
    LISTEN,
    LISTENING,
    MAX_ADDRESSES,
    MAX_BYE_TEXT,
    MAX_NAME,
    MAX_OPEN,
    MAX_SIGNED_PAYLOAD,
    MOVE,
    NETWORK,
    OPEN,
    OPENED,
    PING,
    PONG,
    PROCESS,
    REFUSED,
    RESET,
    SECRET_SIZE,
    SIGNED_OPEN,
    SNAPSHOT,
    SNAPSHOT_CUT,
    SNAPSHOT_MORE,
    TAG_SIZE,
    TOKEN_SIZE,
    TRUNK,
    WATCH,
    ByeReason,
    SocketEntry,
)
from autoforward.agent_protocol.payloads import ENTRY, PROCESS_HEAD, TRANSPORTS, U32, Rule
from autoforward.core.errors import ProtocolError
from autoforward.core.model import Transport

Role = Literal["host", "agent", "host-trunk", "agent-trunk"]
"""Who reads, and on which of the two paths."""


class Open(NamedTuple):
    """`addresses` are tried in order: IPv4 and IPv6 addresses as text, or names."""

    stream: int
    transport: Transport
    port: int
    addresses: tuple[str, ...]


class SignedOpen(NamedTuple):
    """An OPEN on a trunk. `tag`: TAG_SIZE bytes that show who says so."""

    stream: int
    tag: bytes
    transport: Transport
    port: int
    addresses: tuple[str, ...]


class Watch(NamedTuple):
    """`interval_ms` 0 stops."""

    interval_ms: int
    udp: bool


class Listen(NamedTuple):
    """Listen for direct connections on `address`, one of the container's own. `secret`: SECRET_SIZE bytes.

    Both empty: listen no more.
    """

    secret: bytes
    address: str


class Direct(NamedTuple):
    """The direct connection that brings this `token` (TOKEN_SIZE bytes) is for this stream."""

    stream: int
    token: bytes


class Trunk(NamedTuple):
    """The direct connection that brings this `token` (TOKEN_SIZE bytes) is the trunk; no bytes: there is none any more."""

    token: bytes


Event = frames.Event | Open | SignedOpen | Watch | Listen | Direct | Trunk


def _parse_open(stream: int, payload: bytes) -> Open:
    transport, port, count = TRANSPORTS.get(payload[0]), payload[1] << 8 | payload[2], payload[3]
    if transport is None or not port or not 1 <= count <= MAX_ADDRESSES:
        raise ProtocolError(f"OPEN of transport {payload[0]}, port {port}, {count} addresses")
    addresses = []
    at = 4
    for _ in range(count):
        kind, size = payload[at : at + 2] if at + 2 <= len(payload) else (255, 0)
        value = payload[at + 2 : at + 2 + size]
        at += 2 + size
        if len(value) != size or ((kind, size) not in ((4, 4), (6, 16)) and (kind or not 1 <= size <= MAX_NAME)):
            raise ProtocolError(f"OPEN with an address of kind {kind} and {size} bytes")
        addresses.append(str(ip_address(value)) if kind else value.decode("ascii", "replace"))
    if at != len(payload):
        raise ProtocolError(f"OPEN with {len(payload) - at} bytes too many")
    return Open(stream, transport, port, tuple(addresses))


def _parse_signed_open(stream: int, payload: bytes) -> Event:
    _, transport, port, addresses = _parse_open(stream, payload[TAG_SIZE:])
    return SignedOpen(stream, payload[:TAG_SIZE], transport, port, addresses)


def _parse_trunk(_: int, payload: bytes) -> Event:
    if len(payload) not in (0, TOKEN_SIZE):
        raise ProtocolError(f"TRUNK with a token of {len(payload)} bytes")
    return Trunk(payload)


def _parse_watch(_: int, payload: bytes) -> Event:
    if payload[4] > 1:
        raise ProtocolError(f"WATCH with flags {payload[4]}")
    return Watch(U32.unpack_from(payload)[0], payload[4] == 1)


def _parse_listen(_: int, payload: bytes) -> Event:
    if not payload:
        return Listen(b"", "")
    if len(payload) <= SECRET_SIZE:
        raise ProtocolError(f"LISTEN of {len(payload)} bytes")
    kind, address = payload[SECRET_SIZE], payload[SECRET_SIZE + 1 :]
    if (kind, len(address)) not in ((4, 4), (6, 16)):
        raise ProtocolError(f"LISTEN on an address of kind {kind} and {len(address)} bytes")
    return Listen(payload[:SECRET_SIZE], str(ip_address(address)))


_BOTH_WAYS = {number: payloads.FROM_TRUNK[number] for number in (EOF, RESET, CREDIT, MOVE)}
_AGENT_TRUNK = _BOTH_WAYS | {
    PING: payloads.FROM_AGENT[PING],
    SIGNED_OPEN: Rule(TAG_SIZE + 7, TAG_SIZE + MAX_SIGNED_PAYLOAD, True, _parse_signed_open),
}
_AGENT = _BOTH_WAYS | {
    PING: payloads.FROM_AGENT[PING],
    PONG: payloads.FROM_TRUNK[PONG],
    OPEN: Rule(7, MAX_OPEN, True, _parse_open),
    WATCH: Rule(5, 5, False, _parse_watch),
    LISTEN: Rule(0, SECRET_SIZE + 1 + 16, False, _parse_listen),
    DIRECT: Rule(TOKEN_SIZE, TOKEN_SIZE, True, Direct),
    TRUNK: Rule(0, TOKEN_SIZE, False, _parse_trunk),
}
RULES: dict[Role, dict[int, Rule]] = {
    "host": payloads.FROM_AGENT,
    "host-trunk": payloads.FROM_TRUNK,
    "agent": _AGENT,
    "agent-trunk": _AGENT_TRUNK,
}


class Decoder(decoder.Decoder):
    """That of either side."""

    def __init__(self, role: Role) -> None:
        super().__init__(RULES[role], greeted=role.endswith("-trunk"))

    def feed(self, data: bytes, most: int = sys.maxsize) -> list[Any]:
        return super().feed(data, most)

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end where a frame does: at EOF, whether something was cut off."""
        return not self._rest and not self._data_left


def encode_open(stream: int, transport: Transport, port: int, addresses: Sequence[str]) -> bytes:
    """See `open_payload` and `encode_open_payload`."""
    return encode_open_payload(stream, open_payload(transport, port, addresses))


def encode_opened(stream: int, index: int) -> bytes:
    """The address with that index answered."""
    return _frame(OPENED, stream, bytes((index,)))


def encode_refused(stream: int, errno: int) -> bytes:
    """None answered."""
    return _VALUE_FRAME.pack(REFUSED, 0, 4, stream, errno)


def encode_snapshot(entries: Sequence[SocketEntry], *, more: bool = False, cut: bool = False) -> bytes:
    """One frame of a snapshot; `more` when others follow."""
    rows = []
    for entry in entries:
        address = ip_address(entry.address)
        number = _TRANSPORT_NUMBERS[entry.transport]
        rows.append(ENTRY.pack(number, address.version, entry.port, entry.uid, entry.inode, address.packed))
    return _frame(SNAPSHOT, 0, b"".join(rows), more * SNAPSHOT_MORE | cut * SNAPSHOT_CUT)


def encode_process(inode: int, pid: int, command_line: bytes) -> bytes:
    """Who holds the socket with that inode."""
    return _frame(PROCESS, 0, PROCESS_HEAD.pack(inode, pid) + command_line)


def encode_bye(reason: ByeReason, text: str = "") -> bytes:
    """The last frame."""
    return _frame(BYE, 0, bytes((BYE_REASONS.index(reason) + 1,)) + text.encode()[:MAX_BYE_TEXT])


def encode_listening(port: int, errno: int = 0) -> bytes:
    """Direct connections are taken at `port`; 0: nowhere."""
    return _frame(LISTENING, 0, struct.pack(">HI", port, errno))


def encode_network(namespace: bytes) -> bytes:
    """The network namespace that the agent is in."""
    return _frame(NETWORK, 0, namespace)

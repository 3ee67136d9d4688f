"""Parse a frame's payload: bytes of a length that `decoder` has checked in, one value of `frames` out.

What breaks a limit raises ProtocolError.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from autoforward.agent_protocol.frames import (
    BYE,
    BYE_REASONS,
    CREDIT,
    DIRECT,
    EOF,
    LISTEN,
    LISTENING,
    MAX_ADDRESSES,
    MAX_CREDIT,
    MAX_ERRNO,
    MAX_NAME,
    MAX_WINDOW,
    MIN_WINDOW,
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
    TAG_SIZE,
    TOKEN_SIZE,
    TRUNK,
    VERSION,
    WATCH,
    Bye,
    Credit,
    Direct,
    Eof,
    Event,
    Hello,
    Listen,
    Listening,
    Move,
    Network,
    Open,
    Opened,
    Ping,
    Pong,
    Process,
    Refused,
    Reset,
    SignedOpen,
    SocketEntry,
    Trunk,
    Watch,
)
from autoforward.core.errors import ProtocolError
from autoforward.core.model import Transport

TRANSPORTS: Final[dict[int, Transport]] = {6: "tcp", 17: "udp"}

HELLO: Final = struct.Struct(">8sHHI")
ENTRY: Final = struct.Struct(">BBHIQ16s")
PROCESS_HEAD: Final = struct.Struct(">QI")
U32: Final = struct.Struct(">I")


def parse_hello(data: bytes) -> Hello:
    """`data` holds HELLO_SIZE bytes or more; the magic is the caller's to look at."""
    _, version, flags, window = HELLO.unpack_from(data)
    if version != VERSION or flags or not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ProtocolError(f"the agent speaks version {version} (flags {flags}, window {window}), we speak {VERSION}")
    return Hello(window)


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


def _parse_errno(payload: bytes) -> int:
    (number,) = U32.unpack(payload)
    if number > MAX_ERRNO:
        raise ProtocolError(f"an error number of {number}")
    return int(number)


def _parse_credit(stream: int, payload: bytes) -> Event:
    (size,) = U32.unpack(payload)
    if not 0 < size <= MAX_CREDIT:
        raise ProtocolError(f"a credit of {size}")
    return Credit(stream, size)


def _parse_watch(_: int, payload: bytes) -> Event:
    if payload[4] > 1:
        raise ProtocolError(f"WATCH with flags {payload[4]}")
    return Watch(U32.unpack_from(payload)[0], payload[4] == 1)


def parse_entry(transport: int, family: int, port: int, uid: int, inode: int, address: bytes) -> SocketEntry:
    """The fields of an ENTRY."""
    name = TRANSPORTS.get(transport)
    if name is None or not port or family not in (4, 6) or (family == 4 and any(address[4:])):
        raise ProtocolError(f"a socket of transport {transport}, family {family}, port {port}")
    # Not `ipaddress`: a snapshot of 4,096 took 20 ms with it.
    text = socket.inet_ntop(socket.AF_INET, address[:4]) if family == 4 else socket.inet_ntop(socket.AF_INET6, address)
    return SocketEntry(name, port, text, uid, inode)


def _parse_process(_: int, payload: bytes) -> Event:
    inode, pid = PROCESS_HEAD.unpack_from(payload)
    return Process(inode, pid, payload[PROCESS_HEAD.size :])


def _parse_bye(_: int, payload: bytes) -> Event:
    if not 1 <= payload[0] <= len(BYE_REASONS):
        raise ProtocolError(f"BYE for reason {payload[0]}")
    return Bye(BYE_REASONS[payload[0] - 1], payload[1:].decode("utf-8", "replace"))


def _parse_opened(stream: int, payload: bytes) -> Event:
    if payload[0] >= MAX_ADDRESSES:
        raise ProtocolError(f"OPENED with address number {payload[0]}")
    return Opened(stream, payload[0])


def _parse_listen(_: int, payload: bytes) -> Event:
    if not payload:
        return Listen(b"", "")
    if len(payload) <= SECRET_SIZE:
        raise ProtocolError(f"LISTEN of {len(payload)} bytes")
    kind, address = payload[SECRET_SIZE], payload[SECRET_SIZE + 1 :]
    if (kind, len(address)) not in ((4, 4), (6, 16)):
        raise ProtocolError(f"LISTEN on an address of kind {kind} and {len(address)} bytes")
    return Listen(payload[:SECRET_SIZE], str(ip_address(address)))


def _parse_listening(_: int, payload: bytes) -> Event:
    return Listening(int.from_bytes(payload[:2], "big"), _parse_errno(payload[2:]))


PARSERS: Final[dict[int, Callable[[int, bytes], Event]]] = {
    OPEN: _parse_open,
    OPENED: _parse_opened,
    REFUSED: lambda stream, payload: Refused(stream, _parse_errno(payload)),
    EOF: lambda stream, _: Eof(stream),
    RESET: lambda stream, payload: Reset(stream, _parse_errno(payload)),
    CREDIT: _parse_credit,
    PING: lambda _, payload: Ping(payload),
    PONG: lambda _, payload: Pong(payload),
    WATCH: _parse_watch,
    PROCESS: _parse_process,
    BYE: _parse_bye,
    LISTEN: _parse_listen,
    LISTENING: _parse_listening,
    NETWORK: lambda _, payload: Network(payload),
    DIRECT: Direct,
    MOVE: lambda stream, _: Move(stream),
    TRUNK: _parse_trunk,
    SIGNED_OPEN: _parse_signed_open,
}

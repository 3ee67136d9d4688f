"""Parse a frame's payload: bytes of a length that `decoder` has checked in, one value of `frames` out.

What breaks a limit raises ProtocolError.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from autoforward.agent_protocol.frames import (
    BYE,
    BYE_REASONS,
    CREDIT,
    ENTRY_SIZE,
    EOF,
    LISTENING,
    MAX_ADDRESSES,
    MAX_BYE_TEXT,
    MAX_COMMAND,
    MAX_CREDIT,
    MAX_ERRNO,
    MAX_NETWORK,
    MAX_PAYLOAD,
    MAX_WINDOW,
    MIN_WINDOW,
    MOVE,
    NETWORK,
    OPENED,
    PING,
    PONG,
    PROCESS,
    REFUSED,
    RESET,
    SNAPSHOT,
    SNAPSHOT_CUT,
    SNAPSHOT_MORE,
    VERSION,
    Bye,
    Credit,
    Eof,
    Event,
    Hello,
    Listening,
    Move,
    Network,
    Opened,
    Ping,
    Pong,
    Process,
    Refused,
    Reset,
    SocketEntry,
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


def parse_errno(payload: bytes) -> int:
    """A number of Linux. Raises ProtocolError for what is none."""
    (number,) = U32.unpack(payload)
    if number > MAX_ERRNO:
        raise ProtocolError(f"an error number of {number}")
    return int(number)


def _parse_credit(stream: int, payload: bytes) -> Event:
    (size,) = U32.unpack(payload)
    if not 0 < size <= MAX_CREDIT:
        raise ProtocolError(f"a credit of {size}")
    return Credit(stream, size)


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


def _parse_listening(_: int, payload: bytes) -> Event:
    return Listening(int.from_bytes(payload[:2], "big"), parse_errno(payload[2:]))


class Rule(NamedTuple):
    """What a frame may measure, whether it belongs to a stream, how its payload is parsed, and which flags it may have.

    `parse` gets the stream and the payload; None: the decoder puts the frame together with others.
    """

    min_size: int
    max_size: int
    of_stream: bool
    parse: Callable[[int, bytes], Event] | None
    flags: int = 0


FROM_TRUNK: Final[dict[int, Rule]] = {
    OPENED: Rule(1, 1, True, _parse_opened),
    REFUSED: Rule(4, 4, True, lambda stream, payload: Refused(stream, parse_errno(payload))),
    EOF: Rule(0, 0, True, lambda stream, _: Eof(stream)),
    RESET: Rule(4, 4, True, lambda stream, payload: Reset(stream, parse_errno(payload))),
    CREDIT: Rule(4, 4, True, _parse_credit),
    MOVE: Rule(0, 0, True, lambda stream, _: Move(stream)),
    PONG: Rule(8, 8, False, lambda _, payload: Pong(payload)),
}
"""What an agent may send on a trunk, by the number of the frame; DATA, which is passed on in parts, has no rule."""

FROM_AGENT: Final[dict[int, Rule]] = FROM_TRUNK | {
    PING: Rule(8, 8, False, lambda _, payload: Ping(payload)),
    SNAPSHOT: Rule(0, MAX_PAYLOAD // ENTRY_SIZE * ENTRY_SIZE, False, None, SNAPSHOT_MORE | SNAPSHOT_CUT),
    PROCESS: Rule(PROCESS_HEAD.size, PROCESS_HEAD.size + MAX_COMMAND, False, _parse_process),
    BYE: Rule(1, 1 + MAX_BYE_TEXT, False, _parse_bye),
    LISTENING: Rule(6, 6, False, _parse_listening),
    NETWORK: Rule(1, MAX_NETWORK, False, lambda _, payload: Network(payload)),
}
"""The same on the exec stream."""

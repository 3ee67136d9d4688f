"""Parse a frame's payload: bytes whose length `decoder` has checked in, one value of `frames` out.

Raises ProtocolError for a value beyond its limit.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from autoforward.agent_protocol import frames
from autoforward.core.errors import ProtocolError
from autoforward.core.model import Transport

TRANSPORTS: Final[dict[int, Transport]] = {6: "tcp", 17: "udp"}

HELLO: Final = struct.Struct(">8sHHI")
ENTRY: Final = struct.Struct(">BBHIQ16s")
PROCESS_HEAD: Final = struct.Struct(">QI")
U32: Final = struct.Struct(">I")


def parse_hello(data: bytes) -> frames.Hello:
    """`data` holds HELLO_SIZE bytes or more; the caller has checked the magic."""
    _, version, flags, window = HELLO.unpack_from(data)
    if version != frames.VERSION or flags or not frames.MIN_WINDOW <= window <= frames.MAX_WINDOW:
        raise ProtocolError(
            f"the agent speaks version {version} (flags {flags}, window {window}), we speak {frames.VERSION}"
        )
    return frames.Hello(window)


def parse_errno(payload: bytes) -> int:
    """An errno of Linux. Raises ProtocolError for any other number."""
    (number,) = U32.unpack(payload)
    if number > frames.MAX_ERRNO:
        raise ProtocolError(f"an error number of {number}")
    return int(number)


def _parse_credit(stream: int, payload: bytes) -> frames.Event:
    (size,) = U32.unpack(payload)
    if not 0 < size <= frames.MAX_CREDIT:
        raise ProtocolError(f"a credit of {size}")
    return frames.Credit(stream, size)


def parse_entry(transport: int, family: int, port: int, uid: int, inode: int, address: bytes) -> frames.SocketEntry:
    """Parse the fields of an ENTRY."""
    name = TRANSPORTS.get(transport)
    if name is None or not port or family not in (4, 6) or (family == 4 and any(address[4:])):
        raise ProtocolError(f"a socket of transport {transport}, family {family}, port {port}")
    # Not `ipaddress`: a snapshot of 4,096 took 20 ms with it.
    text = socket.inet_ntop(socket.AF_INET, address[:4]) if family == 4 else socket.inet_ntop(socket.AF_INET6, address)
    return frames.SocketEntry(name, port, text, uid, inode)


def _parse_process(_: int, payload: bytes) -> frames.Event:
    inode, pid = PROCESS_HEAD.unpack_from(payload)
    return frames.Process(inode, pid, payload[PROCESS_HEAD.size :])


def _parse_bye(_: int, payload: bytes) -> frames.Event:
    if not 1 <= payload[0] <= len(frames.BYE_REASONS):
        raise ProtocolError(f"BYE for reason {payload[0]}")
    return frames.Bye(frames.BYE_REASONS[payload[0] - 1], payload[1:].decode("utf-8", "replace"))


def _parse_opened(stream: int, payload: bytes) -> frames.Event:
    if payload[0] >= frames.MAX_ADDRESSES:
        raise ProtocolError(f"OPENED with address number {payload[0]}")
    return frames.Opened(stream, payload[0])


def _parse_listening(_: int, payload: bytes) -> frames.Event:
    return frames.Listening(int.from_bytes(payload[:2], "big"), parse_errno(payload[2:]))


class Rule(NamedTuple):
    """What a frame may measure, whether it belongs to a stream, how its payload is parsed, and which flags it may have.

    `parse` gets the stream and the payload; None: the decoder puts the frame together with others.
    """

    min_size: int
    max_size: int
    of_stream: bool
    parse: Callable[[int, bytes], frames.Event] | None
    flags: int = 0


FROM_TRUNK: Final[dict[int, Rule]] = {
    frames.OPENED: Rule(1, 1, True, _parse_opened),
    frames.REFUSED: Rule(4, 4, True, lambda stream, payload: frames.Refused(stream, parse_errno(payload))),
    frames.EOF: Rule(0, 0, True, lambda stream, _: frames.Eof(stream)),
    frames.RESET: Rule(4, 4, True, lambda stream, payload: frames.Reset(stream, parse_errno(payload))),
    frames.CREDIT: Rule(4, 4, True, _parse_credit),
    frames.MOVE: Rule(0, 0, True, lambda stream, _: frames.Move(stream)),
    frames.PONG: Rule(8, 8, False, lambda _, payload: frames.Pong(payload)),
}
"""What an agent may send on a trunk, by the number of the frame; DATA, which is passed on in parts, has no rule."""

FROM_AGENT: Final[dict[int, Rule]] = FROM_TRUNK | {
    frames.PING: Rule(8, 8, False, lambda _, payload: frames.Ping(payload)),
    frames.SNAPSHOT: Rule(
        0,
        frames.MAX_PAYLOAD // frames.ENTRY_SIZE * frames.ENTRY_SIZE,
        False,
        None,
        frames.SNAPSHOT_MORE | frames.SNAPSHOT_CUT,
    ),
    frames.PROCESS: Rule(PROCESS_HEAD.size, PROCESS_HEAD.size + frames.MAX_COMMAND, False, _parse_process),
    frames.BYE: Rule(1, 1 + frames.MAX_BYE_TEXT, False, _parse_bye),
    frames.LISTENING: Rule(6, 6, False, _parse_listening),
    frames.NETWORK: Rule(1, frames.MAX_NETWORK, False, lambda _, payload: frames.Network(payload)),
}
"""The same on the exec stream."""

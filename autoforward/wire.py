"""The agent's protocol as bytes: events from what arrives, bytes for what is sent. Pure, no I/O.

agent/PROTOCOL.md is the text that this follows; `agent/wire.c` is the other end, and both are held to the same vectors.
What comes out of a container is hostile until parsed: every length, count and text has a named limit here, and what
breaks one raises ProtocolError, which ends that session's use of the agent.

Cost, CPython 3.11 on one core (best of five): DATA frames of 32 KiB decode at 11 to 16 GB/s (0.35 million frames/s) fed
16 or 64 KiB at a time, those of 100 bytes at 2.3 million frames/s; 9 million headers/s are encoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from autoforward.errors import ProtocolError
from autoforward.frames import (
    BYE,
    BYE_REASONS,
    CREDIT,
    DATA,
    EOF,
    HEADER_SIZE,
    HELLO_SIZE,
    MAGIC,
    MAX_ADDRESSES,
    MAX_BYE_TEXT,
    MAX_CREDIT,
    MAX_ENTRIES,
    MAX_ERRNO,
    MAX_NAME,
    MAX_STREAM,
    MAX_WINDOW,
    MIN_WINDOW,
    OPEN,
    OPENED,
    PING,
    PONG,
    PROCESS,
    REFUSED,
    RESET,
    RULES,
    SNAPSHOT,
    SNAPSHOT_CUT,
    SNAPSHOT_MORE,
    VERSION,
    WATCH,
    Bye,
    ByeReason,
    Credit,
    Data,
    Eof,
    Event,
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    Process,
    Refused,
    Reset,
    Role,
    SnapshotEvent,
    SocketEntry,
    Watch,
)
from autoforward.model import Transport

_TRANSPORTS: Final[dict[int, Transport]] = {6: "tcp", 17: "udp"}
_TRANSPORT_NUMBERS: Final = {name: number for number, name in _TRANSPORTS.items()}

_HEADER = struct.Struct(">BBHI")
_HELLO = struct.Struct(">8sHHI")
_VALUE_FRAME = struct.Struct(">BBHII")
_ENTRY = struct.Struct(">BBHIQ16s")
_PROCESS = struct.Struct(">QI")
_U32 = struct.Struct(">I")


class Decoder:
    """Bytes in, events out, for one side: `role` is who reads ("host": what an agent sends).

    The first event is Hello. DATA is passed on in the parts in which it arrives, since the engine's frames and ours do
    not align. After a ProtocolError the decoder must not be used again.
    """

    def __init__(self, role: Role = "host") -> None:
        self._rules = RULES[role]
        # An incomplete hello, header or frame, and how much it takes until looking at it again is of use: a frame that
        # comes byte by byte must not cost the square of its size.
        self._rest = bytearray()
        self._needed = 0
        self._greeted = False
        self._data_stream = 0
        self._data_left = 0
        self._entries: list[SocketEntry] = []

    def __repr__(self) -> str:
        return f"<Decoder greeted={self._greeted} rest={len(self._rest)} data_left={self._data_left}>"

    @property
    def between_frames(self) -> bool:
        """Whether the bytes so far end where a frame does: at EOF, whether something was cut off."""
        return not self._rest and not self._data_left

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes; ProtocolError when it is not the protocol."""
        events: list[Event] = []
        append = events.append
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return events
            data = bytes(self._rest)
            self._rest.clear()
        at, end = 0, len(data)
        if not self._greeted:
            if MAGIC[:end] != data[: len(MAGIC)]:
                said = data[:200].decode("utf-8", "replace")
                raise ProtocolError(f"its first words are not the protocol: {said!r}")
            if end < HELLO_SIZE:
                self._keep(data, 0)
                return events
            append(_parse_hello(data))
            self._greeted = True
            at = HELLO_SIZE
        unpack_header = _HEADER.unpack_from
        left = self._data_left
        stream = self._data_stream
        while at < end:
            if left:
                stop = at + left
                if stop > end:
                    left = stop - end
                    append(Data(stream, data[at:], False))
                    at = end
                    break
                append(Data(stream, data[at:stop], True))
                at = stop
                left = 0
                continue
            if end - at < HEADER_SIZE:
                self._keep(data[at:], HEADER_SIZE)
                break
            kind, flags, size, stream = unpack_header(data, at)
            if kind == DATA:
                if flags or not stream:
                    raise ProtocolError(f"DATA with flags {flags} for stream {stream}")
                at += HEADER_SIZE
                left = size
                if not size:
                    append(Data(stream, b"", True))
                continue
            rule = self._rules.get(kind)
            if rule is None:
                raise ProtocolError(f"unknown frame type {kind}")
            if not rule.min_size <= size <= rule.max_size or (stream != 0) != rule.of_stream or flags & ~rule.flags:
                raise ProtocolError(f"frame of type {kind}: length {size}, flags {flags}, stream {stream}")
            stop = at + HEADER_SIZE + size
            if stop > end:
                self._keep(data[at:], HEADER_SIZE + size)
                break
            payload = data[at + HEADER_SIZE : stop]
            at = stop
            if kind == SNAPSHOT:
                self._take_entries(payload, flags, events)
            else:
                append(_PARSERS[kind](stream, payload))
        self._data_left = left
        self._data_stream = stream
        return events

    def _keep(self, data: bytes, needed: int) -> None:
        self._rest += data
        self._needed = needed

    def _take_entries(self, payload: bytes, flags: int, events: list[Event]) -> None:
        if len(payload) % _ENTRY.size:
            raise ProtocolError(f"a snapshot of {len(payload)} bytes")
        self._entries.extend(_parse_entry(*fields) for fields in _ENTRY.iter_unpack(payload))
        if len(self._entries) > MAX_ENTRIES or (flags & SNAPSHOT_MORE and not payload):
            raise ProtocolError(f"a snapshot of more than {MAX_ENTRIES} sockets")
        if not flags & SNAPSHOT_MORE:
            events.append(SnapshotEvent(tuple(self._entries), bool(flags & SNAPSHOT_CUT)))
            self._entries.clear()


def _parse_hello(data: bytes) -> Hello:
    _, version, flags, window = _HELLO.unpack_from(data)
    if version != VERSION or flags or not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ProtocolError(f"the agent speaks version {version} (flags {flags}, window {window}), we speak {VERSION}")
    return Hello(window)


def _parse_open(stream: int, payload: bytes) -> Event:
    transport, port, count = _TRANSPORTS.get(payload[0]), payload[1] << 8 | payload[2], payload[3]
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


def _parse_errno(payload: bytes) -> int:
    (number,) = _U32.unpack(payload)
    if number > MAX_ERRNO:
        raise ProtocolError(f"an error number of {number}")
    return int(number)


def _parse_credit(stream: int, payload: bytes) -> Event:
    (size,) = _U32.unpack(payload)
    if not 0 < size <= MAX_CREDIT:
        raise ProtocolError(f"a credit of {size}")
    return Credit(stream, size)


def _parse_watch(_: int, payload: bytes) -> Event:
    if payload[4] > 1:
        raise ProtocolError(f"WATCH with flags {payload[4]}")
    return Watch(_U32.unpack_from(payload)[0], payload[4] == 1)


def _parse_entry(transport: int, family: int, port: int, uid: int, inode: int, address: bytes) -> SocketEntry:
    name = _TRANSPORTS.get(transport)
    if name is None or not port or family not in (4, 6) or (family == 4 and any(address[4:])):
        raise ProtocolError(f"a socket of transport {transport}, family {family}, port {port}")
    text = str(IPv4Address(address[:4]) if family == 4 else IPv6Address(address))
    return SocketEntry(name, port, text, uid, inode)


def _parse_process(_: int, payload: bytes) -> Event:
    inode, pid = _PROCESS.unpack_from(payload)
    return Process(inode, pid, payload[_PROCESS.size :])


def _parse_bye(_: int, payload: bytes) -> Event:
    if not 1 <= payload[0] <= len(BYE_REASONS):
        raise ProtocolError(f"BYE for reason {payload[0]}")
    return Bye(BYE_REASONS[payload[0] - 1], payload[1:].decode("utf-8", "replace"))


def _parse_opened(stream: int, payload: bytes) -> Event:
    if payload[0] >= MAX_ADDRESSES:
        raise ProtocolError(f"OPENED with address number {payload[0]}")
    return Opened(stream, payload[0])


_PARSERS: Final[dict[int, Callable[[int, bytes], Event]]] = {
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
}


def _frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return _HEADER.pack(kind, flags, len(payload), stream) + payload


def encode_hello(window: int) -> bytes:
    """The first bytes of either side; `window` within MIN_WINDOW and MAX_WINDOW (ValueError)."""
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"window {window} is not within {MIN_WINDOW} and {MAX_WINDOW}")
    return _HELLO.pack(MAGIC, VERSION, 0, window)


def encode_open(stream: int, transport: Transport, port: int, addresses: Sequence[str]) -> bytes:
    """`addresses`: 1 to MAX_ADDRESSES, IPv4, IPv6 or names of at most MAX_NAME ASCII characters (ValueError)."""
    if not 1 <= len(addresses) <= MAX_ADDRESSES or not 0 < port <= 65_535 or not 0 < stream <= MAX_STREAM:
        raise ValueError(f"stream {stream} to port {port} of {len(addresses)} addresses")
    parts = [struct.pack(">BHB", _TRANSPORT_NUMBERS[transport], port, len(addresses))]
    parts += [_encode_address(text) for text in addresses]
    return _frame(OPEN, stream, b"".join(parts))


def _encode_address(text: str) -> bytes:
    try:
        address = ip_address(text)
    except ValueError:
        name = text.encode("ascii")  # UnicodeEncodeError is a ValueError
        if not 1 <= len(name) <= MAX_NAME:
            raise ValueError(f"a name of {len(name)} characters") from None
        return bytes((0, len(name))) + name
    return bytes((address.version, len(address.packed))) + address.packed


def encode_data_header(stream: int, size: int) -> bytes:
    """What goes before `size` bytes (at most MAX_PAYLOAD, else struct.error), for writes that gather."""
    return _HEADER.pack(DATA, 0, size, stream)


def encode_data(stream: int, payload: bytes) -> bytes:
    """One DATA frame; at most MAX_PAYLOAD bytes (struct.error), for UDP one datagram."""
    return _HEADER.pack(DATA, 0, len(payload), stream) + payload


def encode_eof(stream: int) -> bytes:
    """No more DATA from us."""
    return _HEADER.pack(EOF, 0, 0, stream)


def encode_reset(stream: int, errno: int = 0) -> bytes:
    """The stream is over; the agent closes the server's connection with a reset."""
    return _VALUE_FRAME.pack(RESET, 0, 4, stream, errno)


def encode_credit(stream: int, size: int) -> bytes:
    """`size` bytes more are accepted: as many as the far socket has taken."""
    return _VALUE_FRAME.pack(CREDIT, 0, 4, stream, size)


def encode_ping(payload: bytes) -> bytes:
    """`payload`: 8 bytes that the PONG brings back."""
    return _frame(PING, 0, payload)


def encode_pong(payload: bytes) -> bytes:
    """The answer to a PING."""
    return _frame(PONG, 0, payload)


def encode_watch(interval_ms: int, *, udp: bool = False) -> bytes:
    """Ask for snapshots at that pace, 0 to stop; each WATCH is answered by a complete one."""
    return _frame(WATCH, 0, _U32.pack(interval_ms) + bytes((udp,)))


# What an agent sends; the host needs these for its tests alone.


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
        rows.append(_ENTRY.pack(number, address.version, entry.port, entry.uid, entry.inode, address.packed))
    return _frame(SNAPSHOT, 0, b"".join(rows), more * SNAPSHOT_MORE | cut * SNAPSHOT_CUT)


def encode_process(inode: int, pid: int, command_line: bytes) -> bytes:
    """Who holds the socket with that inode."""
    return _frame(PROCESS, 0, _PROCESS.pack(inode, pid) + command_line)


def encode_bye(reason: ByeReason, text: str = "") -> bytes:
    """The last frame."""
    return _frame(BYE, 0, bytes((BYE_REASONS.index(reason) + 1,)) + text.encode()[:MAX_BYE_TEXT])

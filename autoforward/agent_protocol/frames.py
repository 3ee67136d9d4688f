"""The frames of the agent's protocol as values, and their limits.

SPEC.md, "Agent protocol", is the specification. `decoder` encodes and decodes these values.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from autoforward.core.model import Transport

MAGIC: Final = b"\x00\xffaf\r\n\x1a\x00"
VERSION: Final = 1
HELLO_SIZE: Final = 16
HEADER_SIZE: Final = 8
MAX_PAYLOAD: Final = 65_535
MAX_DATAGRAM: Final = 65_507
"""The most that UDP over IPv4 carries. The agent reads a UDP socket only while the stream's credit is at least this."""
MIN_WINDOW: Final = 65_535  # a datagram of any size fits in an untouched window
MAX_WINDOW: Final = 16 << 20  # bounds what one stalled stream can cost either side
MAX_CREDIT: Final = 0x7FFF_FFFF
MAX_STREAM: Final = 0xFFFF_FFFF
MAX_STREAMS: Final = 4096  # open at once; beyond it the agent refuses with EMFILE
MAX_ERRNO: Final = 4095
MAX_ADDRESSES: Final = 8
MAX_NAME: Final = 253  # of DNS
MAX_OPEN: Final = 4 + MAX_ADDRESSES * (2 + MAX_NAME)
MAX_ENTRIES: Final = 4096  # in one snapshot, over all its frames
ENTRY_SIZE: Final = 32
SNAPSHOT_MORE, SNAPSHOT_CUT = 1, 2  # flags: another frame follows; the container has more sockets than the snapshot
MAX_COMMAND: Final = 1024
MAX_BYE_TEXT: Final = 255
MAX_NETWORK: Final = 128

SECRET_SIZE: Final = 16
TOKEN_SIZE: Final = 16
TAG_SIZE: Final = 16
MAX_SIGNED_PAYLOAD: Final = 60
"""The bytes that the agent signs with one HMAC for an OPEN on a trunk, together with the stream's number."""

OPEN, OPENED, REFUSED, DATA, EOF, RESET, CREDIT, PING, PONG, WATCH, SNAPSHOT, PROCESS, BYE = range(1, 14)
LISTEN, LISTENING, DIRECT, MOVE, TRUNK, SIGNED_OPEN, NETWORK = range(14, 21)

ByeReason = Literal["stdin ended", "silence", "protocol error"]
BYE_REASONS: Final[tuple[ByeReason, ...]] = ("stdin ended", "silence", "protocol error")


class Hello(NamedTuple):
    """The first event of either side. `window`: bytes of DATA that it accepts on each stream before it sends CREDIT."""

    window: int


class Opened(NamedTuple):
    """`address_index`: which address answered."""

    stream: int
    address_index: int


class Refused(NamedTuple):
    """No address answered; the last error, in Linux numbers (2: the name is not known, 24: too many streams)."""

    stream: int
    errno: int


class Data(NamedTuple):
    """Bytes as they arrived. `last` is False when the same frame continues: for UDP, the datagram continues."""

    stream: int
    payload: bytes
    last: bool


class Eof(NamedTuple):
    """No more DATA in this direction."""

    stream: int


class Reset(NamedTuple):
    """The stream is over, both ways."""

    stream: int
    errno: int


class Credit(NamedTuple):
    """`size` more bytes are accepted."""

    stream: int
    size: int


class Ping(NamedTuple):
    """Answered at once by a PONG with the same 8 bytes."""

    payload: bytes


class Pong(NamedTuple):
    """The answer to a PING."""

    payload: bytes


class SocketEntry(NamedTuple):
    """A listening TCP socket or a bound UDP socket in the container; `address` may be a wildcard."""

    transport: Transport
    port: int
    address: str
    uid: int
    inode: int


class SnapshotEvent(NamedTuple):
    """All sockets at one moment, from any number of frames. `cut`: the container has more sockets than these."""

    entries: tuple[SocketEntry, ...]
    cut: bool


class Process(NamedTuple):
    """The process that holds a socket; pid 0 when it was not found. Arguments are separated by NUL; hostile text."""

    inode: int
    pid: int
    command_line: bytes

    def __repr__(self) -> str:
        """Without the command line, because the repr appears in error messages."""
        return f"<Process {self.pid} of socket {self.inode}>"


class Network(NamedTuple):
    """The agent's network namespace, as `network_namespace.own_namespace` writes it; hostile text."""

    namespace: bytes


class Bye(NamedTuple):
    """The agent ends on purpose."""

    reason: ByeReason
    text: str


class Listening(NamedTuple):
    """The port for direct connections; port 0: none, with the errno."""

    port: int
    errno: int


class Move(NamedTuple):
    """The sender's bytes after this frame arrive on the direct connection."""

    stream: int


_OfStream = Opened | Refused | Data | Eof | Reset | Credit | Move
Event = _OfStream | Hello | Ping | Pong | SnapshotEvent | Process | Network | Bye | Listening
"""The events that an agent's frames decode to."""

MuxEvent = Hello | Network | SnapshotEvent | Process
"""Frames of the agent that concern no single connection."""

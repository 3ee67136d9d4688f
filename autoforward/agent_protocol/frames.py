"""The frames of the agent's protocol as values, and their limits.

agent/PROTOCOL.md is the text that this follows. `decoder` turns these values into bytes and back.
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
"""What fits UDP over IPv4. The agent reads a UDP socket only while the stream's credit is at least that."""
MIN_WINDOW: Final = 65_535  # a datagram of any size fits in an untouched window
MAX_WINDOW: Final = 16 << 20  # bounds what one stalled stream can cost either side
MAX_CREDIT: Final = 0x7FFF_FFFF
MAX_STREAM: Final = 0xFFFF_FFFF
MAX_STREAMS: Final = 4096  # open at once; the agent refuses more with EMFILE
MAX_ERRNO: Final = 4095
MAX_ADDRESSES: Final = 8
MAX_NAME: Final = 253  # of DNS
MAX_OPEN: Final = 4 + MAX_ADDRESSES * (2 + MAX_NAME)
MAX_ENTRIES: Final = 4096  # of a snapshot, over all its frames
ENTRY_SIZE: Final = 32
SNAPSHOT_MORE, SNAPSHOT_CUT = 1, 2  # flags: another frame follows; there were more sockets than told
MAX_COMMAND: Final = 1024
MAX_BYE_TEXT: Final = 255
MAX_NETWORK: Final = 128

SECRET_SIZE: Final = 16
TOKEN_SIZE: Final = 16
TAG_SIZE: Final = 16
MAX_SIGNED_PAYLOAD: Final = 60
"""Of an OPEN on a trunk: with the stream's number, what one HMAC of the agent takes."""

OPEN, OPENED, REFUSED, DATA, EOF, RESET, CREDIT, PING, PONG, WATCH, SNAPSHOT, PROCESS, BYE = range(1, 14)
LISTEN, LISTENING, DIRECT, MOVE, TRUNK, SIGNED_OPEN, NETWORK = range(14, 21)

ByeReason = Literal["stdin ended", "silence", "protocol error"]
BYE_REASONS: Final[tuple[ByeReason, ...]] = ("stdin ended", "silence", "protocol error")


class Hello(NamedTuple):
    """The first event of either side. `window`: bytes of DATA it accepts on each stream before it gives CREDIT."""

    window: int


class Opened(NamedTuple):
    """`address_index` is that of the address that answered."""

    stream: int
    address_index: int


class Refused(NamedTuple):
    """No address answered; the last error, in Linux numbers (2: the name is not known, 24: too many streams)."""

    stream: int
    errno: int


class Data(NamedTuple):
    """Bytes as they arrived. `last` is False when more of the same frame follows: for UDP the datagram goes on."""

    stream: int
    payload: bytes
    last: bool


class Eof(NamedTuple):
    """No more DATA this way."""

    stream: int


class Reset(NamedTuple):
    """The stream is over, both ways."""

    stream: int
    errno: int


class Credit(NamedTuple):
    """So many bytes more are accepted."""

    stream: int
    size: int


class Ping(NamedTuple):
    """To be answered at once by a PONG with the same 8 bytes."""

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
    """All sockets at one moment, from however many frames. `cut`: there were more than the agent tells of."""

    entries: tuple[SocketEntry, ...]
    cut: bool


class Process(NamedTuple):
    """Who holds a socket; pid 0 when that was not to be found. Arguments are apart by NUL; hostile text."""

    inode: int
    pid: int
    command_line: bytes

    def __repr__(self) -> str:
        """Without what may not be written: it stands in the text of faults."""
        return f"<Process {self.pid} of socket {self.inode}>"


class Network(NamedTuple):
    """The network namespace that the agent is in, as `networks.namespace` writes it; hostile text."""

    namespace: bytes


class Bye(NamedTuple):
    """The agent ends on purpose."""

    reason: ByeReason
    text: str


class Listening(NamedTuple):
    """Where direct connections are taken; port 0: nowhere, with the reason."""

    port: int
    errno: int


class Move(NamedTuple):
    """Every byte of the sender's after this comes over the direct connection."""

    stream: int


_OfStream = Opened | Refused | Data | Eof | Reset | Credit | Move
Event = _OfStream | Hello | Ping | Pong | SnapshotEvent | Process | Network | Bye | Listening
"""What an agent says."""

MuxEvent = Hello | Network | SnapshotEvent | Process
"""What an agent says that is not about one connection."""

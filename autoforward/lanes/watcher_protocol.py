"""The shell watcher's protocol, sans-IO: bytes in, frames and answers out.

stdout carries `AF hello`, then frames (`AF begin N`, rows, `AF end N`); stderr carries answers, one per line. All of it
comes from a container and is hostile until parsed: violating a named limit is a ProtocolError, which ends that session
only.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field

from autoforward.core.errors import ProtocolError
from autoforward.core.text import MAX_LINE_BYTES, decoded_line
from autoforward.detection.proc_net import SocketTable, parse_proc_net_tcp
from autoforward.lanes.scripts import check_token

MAX_FRAME = 1024 * 1024
"""Bytes of one frame. The script sends at most 2,048 rows of at most 120 bytes."""

MAX_SOCKETS = 64
"""Sockets taken from one `socks` answer; a relay has one."""

_HELLO = re.compile(
    rb"AF hello 1 pid=(\d{1,10}) filter=(grep|awk|sed|cat|read) interval=([0-9.]{1,10})(?: net=([!-~ ]{1,128}))?"
)
_OWNER = re.compile(rb"owner (\d{1,20}) (\d{1,10})(?: (.*))?", re.DOTALL)
_BEGIN = re.compile(rb"AF begin (\d{1,18})")


@dataclass(frozen=True, slots=True)
class Hello:
    """The watcher has started. `pid`: in the container; `interval`: its poll interval, in seconds.

    `network`: its network namespace, as `network_namespace.own_namespace` writes it; empty if unknown.
    """

    pid: int
    filter: str
    interval: str
    network: bytes = b""


@dataclass(frozen=True, slots=True)
class Frame:
    """A complete snapshot of the tables; `number` counts from 1 without gaps."""

    number: int
    table: SocketTable


class WatcherStream:
    """Parser of the watcher's stdout. `feed` raises ProtocolError, after which it is unusable."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._number = 0
        self._greeted = False
        self.has_more = False
        """Whether `feed` stopped at its limit: call it again, with or without new bytes."""

    def __repr__(self) -> str:
        return f"<WatcherStream frame={self._number} buffered={len(self._buffer)}>"

    def feed(self, data: bytes, most: int = sys.maxsize) -> list[Hello | Frame]:
        """The messages that `data` completes, in order, at most `most`."""
        self._buffer += data
        done: list[Hello | Frame] = []
        while len(done) < most and (event := self._next()) is not None:
            done.append(event)
        self.has_more = len(done) == most
        return done

    def _next(self) -> Hello | Frame | None:
        newline = self._buffer.find(b"\n", 0, MAX_LINE_BYTES + 1)
        if newline < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise ProtocolError("the watcher sent a line that is too long")
            return None
        first = bytes(self._buffer[:newline])
        if not self._greeted:
            hello = _HELLO.fullmatch(first)
            if hello is None:
                raise ProtocolError(f"the watcher did not greet: {first[:80]!r}")
            self._greeted = True
            self._drop(newline + 1)
            return Hello(int(hello[1]), hello[2].decode(), hello[3].decode(), hello[4] or b"")
        begin = _BEGIN.fullmatch(first)
        if begin is None or int(begin[1]) != self._number + 1:
            raise ProtocolError(f"the watcher sent something that is not a frame: {first[:80]!r}")
        # Searched from the newline before: in an empty frame the end follows the begin directly.
        end_mark = b"\nAF end %d\n" % (self._number + 1)
        at = self._buffer.find(end_mark, max(newline, self._scanned - len(end_mark)))
        if at < 0:
            if len(self._buffer) > MAX_FRAME:
                raise ProtocolError("the watcher sent a frame that is too long")
            self._scanned = len(self._buffer)
            return None
        body = bytes(self._buffer[newline + 1 : at + 1])
        self._drop(at + len(end_mark))
        self._number += 1
        return Frame(self._number, parse_proc_net_tcp(body, close_wait=True))

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._scanned = 0


@dataclass(frozen=True, slots=True)
class Pong:
    """The poll loop runs."""

    number: int


@dataclass(frozen=True, slots=True)
class Killed:
    """`sent` is False if the process was gone, or was not that relay."""

    pid: int
    sent: bool


@dataclass(frozen=True, slots=True)
class Sockets:
    """Inodes of the sockets that a relay holds; empty if it is gone."""

    pid: int
    inodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a listening socket; `pid` 0 if not found. `command_line` is hostile, arguments separated by NUL."""

    inode: int
    pid: int
    command_line: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fatal:
    """The watcher cannot work in this container."""

    reason: str


Answer = Pong | Killed | Sockets | Owner | Fatal


def parse_answer(line: bytes) -> Answer | None:
    """Parse one line of the watcher's stderr, without its newline; None for anything else (such as a shell's error)."""
    if line.startswith(b"AF fatal "):
        return Fatal(decoded_line(line[9:]))
    if owner := _OWNER.fullmatch(line, 0, MAX_LINE_BYTES):
        return Owner(int(owner[1]), int(owner[2]), (owner[3] or b"").replace(b"\1", b"\0").rstrip(b"\0"))
    words = line[:MAX_LINE_BYTES].split()
    if len(words) < 2 or not all(word.isdigit() and len(word) <= 20 for word in words[1:]):
        return None
    number = int(words[1])
    if words[0] == b"socks":
        return Sockets(number, tuple(int(word) for word in words[2 : 2 + MAX_SOCKETS]))
    if len(words) != 2:
        return None
    match words[0]:
        case b"pong":
            return Pong(number)
        case b"killed" | b"gone":
            return Killed(number, words[0] == b"killed")
    return None


def encode_ping(number: int) -> bytes:
    """Answered by Pong while the poll loop is alive."""
    return b"ping %d\n" % number


def encode_kill(pid: int, relay_token: str, *, hard: bool = False) -> bytes:
    """TERM (with `hard`, KILL) a relay, if `pid` still is that relay; answered by Killed."""
    return b"%s %d %s\n" % (b"kill9" if hard else b"kill", pid, check_token(relay_token).encode())


def encode_sockets(pid: int, relay_token: str) -> bytes:
    """Ask which sockets a relay holds; answered by Sockets."""
    return b"socks %d %s\n" % (pid, check_token(relay_token).encode())

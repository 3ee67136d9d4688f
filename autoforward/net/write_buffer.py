"""A write buffer for a non-blocking socket, and a lingering close."""

from __future__ import annotations

import itertools
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable

from autoforward.net.keepalive import keep_alive, leaves_this_machine
from autoforward.net.loop import Loop

RECEIVE_BYTES = 256 * 1024

JOINED_BYTES = 4096
"""Chunks are joined up to this size. A chunk of 2 bytes costs 50 more: the half million of them that a window allows
took 33 MB.
"""

MAX_GATHERED = 64
"""Chunks per `sendmsg`; the system limit is 1,024."""

_MSG_MORE = getattr(socket, "MSG_MORE", 0)  # Linux

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
CLOSE_IN_ORDER = struct.pack("ii", 0, 0)
"""SO_LINGER: discard unsent bytes and reset, or send them with a FIN."""


def prepare_listener(listener: socket.socket) -> None:
    """Options that accepted sockets inherit (on macOS all but the first); one system call instead of one per socket."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Until its orderly end each socket closes with a reset, whoever closes it: the kernel would otherwise send FIN for
    # a killed supervisor, and half an answer would look complete.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    if leaves_this_machine(listener):
        keep_alive(listener)


def append_joined(chunks: deque[bytes | memoryview], data: bytes) -> None:
    """Append `data`, joined with the last chunk if small: memory use follows the bytes, not the number of chunks."""
    if chunks and len(chunks[-1]) + len(data) <= JOINED_BYTES:
        chunks[-1] = b"".join((chunks[-1], data))
    else:
        chunks.append(data)


class WriteBuffer:
    """Bytes that wait for a socket to take them, in order."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: deque[bytes | memoryview] = deque()
        self.size = 0

    def append(self, data: bytes) -> None:
        append_joined(self._chunks, data)
        self.size += len(data)

    def clear(self) -> None:
        self._chunks.clear()
        self.size = 0

    def flush_gathered(self, sock: socket.socket, *, fin_follows: bool = False) -> int:
        """As `flush`, with one system call for many chunks; a FIN that follows at once goes into the last segment."""
        before = self.size
        flags = _MSG_MORE if fin_follows else 0
        while self._chunks:
            batch = list(itertools.islice(self._chunks, MAX_GATHERED))
            try:
                left = sock.sendmsg(batch, (), flags)
            except BlockingIOError:
                break
            self.size -= left
            for chunk in batch:
                if left < len(chunk):
                    self._chunks[0] = memoryview(chunk)[left:]
                    return before - self.size
                left -= len(chunk)
                self._chunks.popleft()
        return before - self.size

    def flush(self, send: Callable[[bytes | memoryview], int]) -> int:
        """Send as much as is taken; returns how many bytes. Raises OSError of `send` except BlockingIOError."""
        before = self.size
        while self._chunks:
            chunk = self._chunks[0]
            try:
                sent = send(chunk)
            except BlockingIOError:
                break
            self.size -= sent
            if sent < len(chunk):
                self._chunks[0] = memoryview(chunk)[sent:]
                break
            self._chunks.popleft()
        return before - self.size


class Linger:
    """A client whose server has closed: discard what it still sends, until it closes or times out."""

    __slots__ = ("_client", "_loop", "_timer")

    def __init__(self, loop: Loop, client: socket.socket, timeout_s: float) -> None:
        self._loop = loop
        self._client = client
        self._timer = loop.call_later(timeout_s, self.close)
        loop.adopt(self)
        loop.watch(client.fileno(), selectors.EVENT_READ, self._on_ready)

    def __repr__(self) -> str:
        return f"<Linger fd={self._client.fileno()}>"

    def _on_ready(self, _events: int) -> None:
        try:
            if self._client.recv(RECEIVE_BYTES):
                return
        except BlockingIOError:
            return
        except OSError:  # reset: an end too
            pass
        self.close()

    def close(self) -> None:
        self._timer.cancel()
        if self._client.fileno() >= 0:
            self._loop.disown(self)
            self._loop.watch(self._client.fileno(), 0, self._on_ready)
            self._client.close()

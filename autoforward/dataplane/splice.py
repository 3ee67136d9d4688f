"""Splice a client and a direct connection: the kernel moves the bytes, through a pipe each way if pipes are large
enough.

The ends of each direction are also reported on the mux (SPEC.md, "Direct connections"): a FIN alone may come from a
killed agent, and half an answer must not look complete. Data plane thread only; Linux only, like the direct path.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import socket
from collections.abc import Callable
from typing import Protocol

from autoforward.net.loop import Loop
from autoforward.net.write_buffer import RESET_ON_CLOSE

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

PIPE_BYTES = 1024 * 1024
"""Bytes per read."""

LEAST_PIPE_BYTES = 64 * 1024
"""Above /proc/sys/fs/pipe-user-pages-soft a user's new pipes have two pages: copying is faster."""

COPY_BYTES = 256 * 1024


class _Way(Protocol):
    """One direction: bytes read from its source and not yet taken by its sink, and whether the source has ended.

    `told`: the other side knows of that end.
    """

    held: int
    ended: bool
    told: bool

    def fill(self, source: socket.socket) -> None:
        """Read what is there; call `drain` next, and `fill` only while nothing is held.

        Raises OSError of the source, including BlockingIOError.
        """

    def drain(self, sink: socket.socket) -> int:
        """Write what is held, as far as the sink takes it; returns how much. Raises OSError of the sink."""

    def close(self) -> None: ...


class _Pipe:
    """Zero-copy. Raises OSError without free descriptors."""

    __slots__ = ("_read_fd", "_write_fd", "ended", "held", "size", "told")

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        self.ended = self.told = False
        try:
            self.size = fcntl.fcntl(self._write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            self.size = fcntl.fcntl(self._write_fd, fcntl.F_GETPIPE_SZ)

    def fill(self, source: socket.socket) -> None:
        self.held = os.splice(source.fileno(), self._write_fd, PIPE_BYTES, flags=os.SPLICE_F_NONBLOCK)
        self.ended = not self.held

    def drain(self, sink: socket.socket) -> int:
        before = self.held
        try:
            while self.held:
                self.held -= os.splice(self._read_fd, sink.fileno(), self.held, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            pass
        return before - self.held

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


class _Copy:
    """Through memory."""

    __slots__ = ("_bytes", "ended", "held", "told")

    _memory = memoryview(bytearray(COPY_BYTES))
    """The read buffer; bytes that a sink does not take at once move elsewhere."""

    def __init__(self) -> None:
        self._bytes = memoryview(b"")
        self.held = 0
        self.ended = self.told = False

    def fill(self, source: socket.socket) -> None:
        self.held = source.recv_into(self._memory)
        self._bytes = self._memory[: self.held]
        self.ended = not self.held

    def drain(self, sink: socket.socket) -> int:
        before = self.held
        try:
            while self.held:
                self._bytes = self._bytes[sink.send(self._bytes) :]
                self.held = len(self._bytes)
        except BlockingIOError:
            pass
        if self._bytes.obj is self._memory.obj:
            self._bytes = memoryview(bytes(self._bytes))
        return before - self.held

    def close(self) -> None:
        self._bytes = memoryview(b"")


def _new_way() -> _Way:
    """Raises OSError without free descriptors."""
    pipe = _Pipe()
    if pipe.size >= LEAST_PIPE_BYTES:
        return pipe
    pipe.close()
    return _Copy()


class SplicerOwner(Protocol):
    """What a splicer needs of its relay."""

    def up_moved(self, size: int) -> None:
        """`size` bytes went to the server."""

    def down_moved(self, size: int) -> None:
        """`size` bytes went to the client."""

    def client_said_all(self) -> None:
        """The client's FIN was read, and everything before it delivered."""

    def server_said_all(self) -> None:
        """The server has ended its direction, and the client has everything."""

    def stopped_reading(self) -> None:
        """The client's socket is not read: its reset would not show."""

    def cut(self, reason: str) -> None:
        """The client broke off."""

    def broken(self, reason: str) -> None:
        """The far end did."""


class Splicer:
    """Owns the direct connection and the pipes, not the client's socket. `close` is idempotent and makes no calls."""

    __slots__ = ("_after", "_client", "_down", "_far", "_is_open", "_loop", "_owner", "_server_ended", "_up")

    def __init__(
        self,
        loop: Loop,
        owner: SplicerOwner,
        client: socket.socket,
        far: socket.socket,
        *,
        client_ended: bool,
        server_ended: bool,
    ) -> None:
        """Raises OSError without free descriptors; then the caller keeps `far`."""
        self._loop = loop
        self._owner = owner
        self._client = client
        self._far = far
        self._up = _new_way()
        try:
            self._down = _new_way()
        except OSError:
            self._up.close()
            raise
        self._server_ended = server_ended
        self._after: Callable[[], None] | None = None
        self._is_open = True
        # An end before the move was reported on the mux.
        self._up.ended = self._up.told = client_ended
        self._down.ended = self._down.told = server_ended

    def __repr__(self) -> str:
        return f"<Splicer client={self._client.fileno()} far={self._far.fileno()}>"

    def start(self) -> None:
        if self._up.ended:
            self._end_up()
        self._watch()

    @property
    def pending(self) -> int:
        return self._up.held

    @property
    def reads_client(self) -> bool:
        return not self._up.ended and not self._up.held

    def server_eof(self) -> None:
        """The agent reports the server's end on the mux; the FIN here may come before or after it."""
        self._server_ended = True
        self._settle()

    def finish_then(self, call: Callable[[], None]) -> None:
        """The server reset: send nothing more up; call `call` once the bytes before the reset are delivered."""
        self._up.ended = self._up.told = True
        self._up.held = 0
        self._after = call
        self._settle()
        self._watch()

    def close(self) -> None:
        """Reset the direct connection unless both ends were reported; release the client's socket."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.watch(self._client.fileno(), 0, self._on_client)
        self._loop.watch(self._far.fileno(), 0, self._on_far)
        if not (self._up.told and self._down.ended):
            self._far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._far.close()
        self._up.close()
        self._down.close()

    # Readiness.

    def _watch(self) -> None:
        if not self._is_open:
            return
        up, down = self._up, self._down
        client = (READ if self.reads_client else 0) | (WRITE if down.held else 0)
        far = (READ if not down.ended and not down.held else 0) | (WRITE if up.held else 0)
        self._loop.watch(self._client.fileno(), client, self._on_client)
        self._loop.watch(self._far.fileno(), far, self._on_far)
        if not client & READ:
            self._owner.stopped_reading()

    def _on_client(self, events: int) -> None:
        if events & READ and self.reads_client:
            try:
                self._up.fill(self._client)
            except BlockingIOError:
                return
            except OSError as error:
                self._owner.cut(f"the client broke off: {error.strerror}")
                return
            self._drain_up()
        if events & WRITE and self._is_open and self._down.held:
            self._drain_down()
        self._watch()

    def _on_far(self, events: int) -> None:
        if events & WRITE and self._up.held:
            self._drain_up()
        if events & READ and self._is_open and not self._down.ended and not self._down.held:
            try:
                self._down.fill(self._far)
            except BlockingIOError:
                return
            except OSError as error:
                if self._after is not None:  # its remaining bytes are lost
                    self._down.ended = True
                    self._settle()
                else:
                    self._owner.broken(f"the direct connection to the container broke: {error.strerror}")
                return
            self._drain_down()
        self._watch()

    def _drain_up(self) -> None:
        try:
            self._owner.up_moved(self._up.drain(self._far))
        except OSError as error:
            if self._down.ended:
                self._owner.broken(f"the direct connection to the container broke: {error.strerror}")
                return
            # It reads no more. Its output is still to be read; its end comes from there.
            self._up.held = 0
            self._up.ended = self._up.told = True
        if self._up.ended and not self._up.held and not self._up.told:
            self._up.told = True
            self._end_up()
            self._owner.client_said_all()

    def _end_up(self) -> None:
        try:
            self._far.shutdown(socket.SHUT_WR)
        except OSError:  # broken: the reading side reports it
            pass

    def _drain_down(self) -> None:
        try:
            self._owner.down_moved(self._down.drain(self._client))
        except OSError as error:
            self._owner.cut(f"the client broke off: {error.strerror}")
            return
        self._settle()

    def _settle(self) -> None:
        """Report the server's end once FIN and the mux's message have both come and the client has everything."""
        if not self._is_open or self._down.held or not self._down.ended:
            return
        if self._after is not None:
            self._after()
        elif self._server_ended and not self._down.told:
            self._down.told = True
            self._owner.server_said_all()

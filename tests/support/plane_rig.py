"""A data plane without an engine: the test plays control, the container, and the clients.

The far end of a relay is one end of a socket pair, framed as the engine frames an exec stream; `Far` holds the other.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from autoforward.dataplane.messages import (
    Drain,
    ForwardCounters,
    PlaneEvent,
    ReadCounters,
    RelayPlan,
    Serve,
    StreamReady,
    StreamWanted,
)
from autoforward.dataplane.plane import DataPlane
from autoforward.dataplane.times import Times
from autoforward.engine.exec_stream import SocketStream
from autoforward.lanes.relay_tools import Netcat, RelayTool, netcat_tool, socat_tool

TIMEOUT_S = 20.0
FORWARD = "fwd-1"
TOKEN = "0123456789abcdef" * 2
RESET = struct.pack("ii", 1, 0)
BUSYBOX = netcat_tool(Netcat(("busybox", "nc"), "busybox"))
N = TypeVar("N", bound=PlaneEvent)


class Far:
    """The container's side of one exec stream: a relay process that says what the test wants."""

    def __init__(self, sock: socket.socket, relay_id: int) -> None:
        self.sock = sock
        self.relay_id = relay_id
        sock.settimeout(TIMEOUT_S)

    def stdout(self, payload: bytes) -> None:
        self.sock.sendall(struct.pack(">BxxxI", 1, len(payload)) + payload)

    def stderr(self, line: str) -> None:
        self.sock.sendall(struct.pack(">BxxxI", 2, len(line) + 1) + line.encode() + b"\n")

    def opened(self, container_pid: int = 41) -> None:
        self.stderr(f"AF pid {container_pid}")
        self.stderr("2026/11/21 10:19:02 socat[41] N successfully connected from local address AF=2 127.0.0.1:4")

    def failed(self, container_pid: int = 41, reason: str = "Connection refused") -> None:
        self.stderr(f"AF pid {container_pid}")
        self.stderr(f"2026/11/21 10:19:02 socat[41] E connect(5, AF=2 127.0.0.1:3999, 16): {reason}")

    def server_eof(self) -> None:
        self.stderr("2026/11/21 10:19:02 socat[41] N socket 2 (fd 5) is at EOF")

    def server_reset(self) -> None:
        self.stderr("2026/11/21 10:19:02 socat[41] W read(5, 0x55, 8192): Connection reset by peer")

    def read(self, count: int) -> bytes:
        """Exactly that much of the process's stdin."""
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece, f"stdin ended after {data!r}"
            data += piece
        return data

    def read_all(self) -> bytes:
        """The process's stdin, to its end."""
        pieces = []
        while piece := self.sock.recv(1 << 20):
            pieces.append(piece)
        return b"".join(pieces)

    def exit(self) -> None:
        self.sock.close()

    def wait_let_go(self) -> None:
        """Wait until the host has closed its end of the stream: then writing fails."""
        self.read_all()
        deadline_s = time.monotonic() + TIMEOUT_S
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline_s:
                self.sock.sendall(struct.pack(">BxxxI", 2, 0))
                time.sleep(0.01)
            raise AssertionError("the host's end of the stream is still open")


class Rig:
    """The control side. `notices` are taken in order of their kind; what is not asked for is kept."""

    def __init__(self, **options: Any) -> None:
        self._arrived: queue.Queue[PlaneEvent] = queue.Queue()
        self._kept: list[PlaneEvent] = []
        self._closing = contextlib.ExitStack()
        self.plane = DataPlane(self._arrived.put, **options)
        self.plane.start()
        self.listener = self.serve(FORWARD)

    def close(self) -> None:
        self.plane.stop()
        self._closing.close()

    def keep(self, sock: socket.socket) -> None:
        """Close it at the end."""
        self._closing.enter_context(sock)

    def serve(self, forward_id: str) -> socket.socket:
        listener = self._closing.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        listener.setblocking(False)
        self.plane.submit(Serve(forward_id, (listener,)))
        return listener

    def expect(self, kind: type[N], timeout_s: float = TIMEOUT_S) -> N:
        """The next notice of this kind."""
        for notice in self._kept:
            if isinstance(notice, kind):
                self._kept.remove(notice)
                return notice
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                notice = self._arrived.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} within {timeout_s} s, but {self._kept}") from None
            if isinstance(notice, kind):
                return notice
            self._kept.append(notice)

    def has(self, kind: type[PlaneEvent]) -> bool:
        """Whether a notice of this kind has come by now."""
        while not self._arrived.empty():
            self._kept.append(self._arrived.get())
        return any(isinstance(notice, kind) for notice in self._kept)

    def connect(self, listener: socket.socket | None = None) -> socket.socket:
        address = (listener or self.listener).getsockname()
        client = self._closing.enter_context(socket.create_connection(address, timeout=TIMEOUT_S))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def stream(
        self,
        wanted: StreamWanted | None = None,
        *,
        tool: RelayTool | None = None,
        attempts: int = 1,
        fallback: bool = False,
    ) -> Far:
        """Answer a StreamWanted (the next one) with a stream."""
        wanted = wanted or self.expect(StreamWanted)
        ours, theirs = socket.socketpair()
        far = Far(self._closing.enter_context(theirs), wanted.relay_id)
        plan = RelayPlan("session", TOKEN, tool or socat_tool(), attempts, fallback)
        self.plane.submit(StreamReady(wanted.relay_id, SocketStream(ours, b"", "exec"), plan))
        return far

    def relay(self) -> tuple[socket.socket, Far]:
        """A client and the far end of its relay, connected."""
        client = self.connect()
        far = self.stream()
        far.opened()
        return client, far

    def counters(self, forward_id: str = FORWARD) -> ForwardCounters:
        done: Future[dict[str, ForwardCounters]] = Future()
        self.plane.submit(ReadCounters(done))
        return done.result(TIMEOUT_S)[forward_id]

    def drain(self, timeout_s: float) -> Future[bool]:
        done: Future[bool] = Future()
        self.plane.submit(Drain(frozenset({FORWARD}), timeout_s, done))
        return done

    def turns_during(self, seconds: float) -> int:
        """How often the loop woke up while nothing happened."""
        before = self.plane.turns
        time.sleep(seconds)  # an idle second is what is measured here
        return self.plane.turns - before


@contextlib.contextmanager
def rig(**options: Any) -> Iterator[Rig]:
    """`options` as of `DataPlane`."""
    one = Rig(**options)
    try:
        yield one
    finally:
        one.close()


def waiting(**times: float) -> pytest.MarkDecorator:
    """A test whose rig (`here`) waits for these times."""
    return pytest.mark.parametrize("here", [Times(**times)], indirect=True, ids=["quick"])


def reset(client: socket.socket) -> None:
    """Close with a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def read_all(client: socket.socket) -> bytes:
    """To EOF; a reset raises ConnectionResetError."""
    pieces = []
    while piece := client.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def fill(sock: socket.socket, piece: bytes, *, quiet_s: float = 0.5) -> int:
    """Write `piece` over and over until nothing has been taken for `quiet_s`; how many bytes were taken."""
    import select

    sock.setblocking(False)
    total = 0
    offset = 0
    while select.select([], [sock], [], quiet_s)[1]:
        with contextlib.suppress(BlockingIOError):
            sent = sock.send(piece[offset:])
            total += sent
            offset = (offset + sent) % len(piece)
    sock.settimeout(TIMEOUT_S)
    return total

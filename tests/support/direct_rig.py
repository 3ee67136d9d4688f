"""Our data plane with a real agent as a child, or one that the test plays, and a server on loopback; without an engine.

The agent speaks over a socket pair as over an exec stream; the "container's address" is 127.0.0.1. What goes over the
exec stream is counted there.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol import frames
from autoforward.agent_protocol.frames import Hello
from autoforward.core.model import DialAddress
from autoforward.dataplane.messages import MuxEnd, MuxSaid, MuxStart, Route
from autoforward.engine.exec_stream import STDOUT
from tests.support import agent_wire
from tests.support.agent_client import LOOKED_INTO
from tests.support.plane_rig import FORWARD, TIMEOUT_S, Rig

SESSION = "ses-direct"
WINDOW = 256 * 1024
F = TypeVar("F", bound=agent_wire.Event)


def descriptors(pid: int | str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class AgentStream:
    """What `SocketStream` is to an exec: here to a child, without the engine's frames. Counts both ways."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.heard = self.said = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def recv(self) -> list[tuple[int, bytes]] | None:
        data = self.sock.recv(256 * 1024)
        self.heard += len(data)
        return [(STDOUT, data)] if data else None

    def send(self, data: bytes | bytearray | memoryview) -> int:
        sent = self.sock.send(data)
        self.said += sent
        return sent

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()


class Direct:
    """A rig whose forward leads to `server`, over an agent of its own."""

    def __init__(self, one: Rig, binary: Path, address: str | None = "127.0.0.1") -> None:
        self.rig = one
        ours, theirs = socket.socketpair()
        self.agent = subprocess.Popen([binary, LOOKED_INTO], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        self.stream = AgentStream(ours)
        self.server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.server.settimeout(TIMEOUT_S)
        port = self.server.getsockname()[1]
        one.plane.submit(Route(FORWARD, SESSION, "tcp", (DialAddress("127.0.0.1", port),)))
        one.plane.submit(MuxStart(SESSION, self.stream, 0, address))
        while not isinstance(one.expect(MuxSaid).event, Hello):
            pass

    def close(self) -> None:
        self.rig.plane.submit(MuxEnd(SESSION))
        self.server.close()
        self.agent.wait(TIMEOUT_S)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and the server's end of its connection."""
        client = self.rig.connect()
        served, _ = self.server.accept()
        served.settimeout(TIMEOUT_S)
        self.rig.keep(served)
        return client, served

    def agent_fds(self) -> int:
        return descriptors(self.agent.pid)


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes of which no piece looks like another: what is lost, doubled or out of order changes the hash."""
    return random.Random(seed).randbytes(1 << 20) * (size >> 20) + b"end"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


def in_thread(call: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline_s, f"not within {TIMEOUT_S} s: {what}"
        time.sleep(0.01)


def moved_pair(direct: Direct) -> tuple[socket.socket, socket.socket]:
    """A pair that is on the direct path for certain: its server sends until more has come than the mux carried."""
    client, served = direct.pair()
    before = direct.stream.heard
    piece = pattern(4 << 20)
    for _ in range(64):
        thread = in_thread(lambda: served.sendall(piece))
        received = 0
        mux_before = direct.stream.heard
        while received < len(piece):
            received += len(client.recv(1 << 20))
        thread.join(TIMEOUT_S)
        if direct.stream.heard - mux_before < len(piece) // 8:
            return client, served
    raise AssertionError(f"still on the mux after {direct.stream.heard - before} bytes")


def pipes(pid: int | str) -> int:
    """How many ends of pipes it has beside its stdin, stdout and stderr."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += int(path.name) > 2 and str(path.readlink()).startswith("pipe:")
    return count


class PlayedAgent:
    """The far end of a mux, which says what the test wants."""

    def __init__(self, one: Rig, address: str | None) -> None:
        self.rig = one
        ours, self.sock = socket.socketpair()
        one.keep(self.sock)
        self.sock.settimeout(TIMEOUT_S)
        self.decoder = agent_wire.Decoder("agent")
        self.frames: deque[agent_wire.Event] = deque()
        self.seen: list[agent_wire.Event] = []
        self.saw_move = False
        one.plane.submit(Route(FORWARD, SESSION, "tcp", (DialAddress("127.0.0.1", 80),)))
        one.plane.submit(MuxStart(SESSION, AgentStream(ours), 0, address))
        self.sock.sendall(wire.encode_hello(WINDOW))
        one.expect(MuxSaid)

    def expect(self, kind: type[F]) -> F:
        """The next frame of this kind; pings are answered, others passed over."""
        while True:
            while self.frames:
                frame = self.frames.popleft()
                self.seen.append(frame)
                self.saw_move |= isinstance(frame, frames.Move)
                if isinstance(frame, frames.Ping):
                    self.sock.sendall(wire.encode_pong(frame.payload))
                if isinstance(frame, kind):
                    return frame
            self.frames.extend(self.decoder.feed(self.sock.recv(1 << 16)))

    def announced(self, kind: type[agent_wire.Trunk] | type[agent_wire.Direct]) -> bytes:
        """The token of the next such connection, which is dialled now that the ping behind it is answered."""
        token = self.expect(kind).token
        self.expect(frames.Ping)
        return token

    def bulk(self, client: socket.socket, stream: int) -> None:
        """So much data that the host wants to move the stream."""
        for _ in range(8):
            self.sock.sendall(wire.encode_data(stream, bytes(64 * 1024 - 1)))
            exactly(client, 64 * 1024 - 1)

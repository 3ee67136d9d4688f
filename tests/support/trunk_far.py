"""The host's side of a trunk, for the tests of the agent as a local child. What is signed is signed here once more."""

from __future__ import annotations

import fcntl
import hmac
import os
import socket
import struct
import termios
from pathlib import Path

from autoforward.agent_protocol import decoder
from tests.support import agent_wire
from tests.support.agent_client import WINDOW, Conversation, Stream, wait_until
from tests.support.direct_far import Far, proof


class Trunk(Conversation):
    """One that both sides have proven themselves on."""

    def __init__(self, far: Far, sock: socket.socket, token: bytes) -> None:
        writer = sock.dup()  # a selector takes a descriptor once
        far.sockets.append(writer)
        super().__init__(writer.fileno(), sock.fileno(), agent_wire.Decoder("host-trunk"))
        self.far = far
        self.sock, self.writer = sock, writer
        self.window = WINDOW  # the agent's, of its hello: as large as ours
        self.key = hmac.digest(far.secret, b"autoforward trunk key" + token, "sha256")

    def tag(self, number: int, payload: bytes) -> bytes:
        return hmac.digest(self.key, number.to_bytes(4, "big") + payload, "sha256")[:16]

    def opening(self, number: int, payload: bytes) -> bytes:
        return decoder.encode_signed_open(number, self.tag(number, payload), payload)

    def until_over(self) -> None:
        """Until the agent has ended it, in whatever way."""
        self.wait(lambda: self.ended, "end of the trunk")

    def _write(self) -> None:
        try:
            super()._write()
        except ConnectionResetError:
            self.pending.clear()

    def _read(self) -> None:
        try:
            super()._read()
        except ConnectionResetError:
            self.ended = True

    def close(self) -> None:
        """With a FIN, or a reset should there be something that was not read."""
        self.writer.close()
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def move(self, stream: Stream) -> socket.socket:
        """The stream goes over a connection of its own from now on: DIRECT on the exec stream, MOVE on the trunk."""
        self.wait(lambda: stream.opened is not None, "opening")  # what the agent knows on one path, DIRECT may name
        connection = self.far.connect(stream)
        self.wait(lambda: not stream.outgoing, "all that goes before")
        self.send(decoder.encode_move(stream.number))
        self.wait(lambda: stream.moved, "MOVE")
        return connection

    def row(self) -> list[str]:
        """The agent's end in the kernel's table; empty once it is gone."""
        ours, theirs = self.sock.getsockname()[1], self.far.port
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
        return next((row for row in rows if row[1].endswith(f":{theirs:04X}") and row[2].endswith(f":{ours:04X}")), [])

    def queued(self) -> int:
        """What the agent has said and our kernel does not take."""
        return int(self.row()[4].partition(":")[0], 16)

    def wait_taken(self) -> None:
        """Writes what is pending, and waits until the agent has read it all: it need not be whole frames."""
        self.write_out()
        wait_until(lambda: self.row()[4].endswith(":00000000"), "agent that reads its trunk")


def wait_stdin_taken(far: Far) -> None:
    """The same for the agent's stdin."""
    far.agent.write_out()

    def is_empty() -> bool:
        left = fcntl.ioctl(far.agent.stdin, termios.FIONREAD, bytes(4))
        return struct.unpack("i", left) == (0,)

    wait_until(is_empty, "agent that reads its stdin")


def announce(far: Far) -> bytes:
    """Tells the agent that a trunk comes; its token."""
    token = os.urandom(16)
    far.agent.send(decoder.encode_trunk(token))
    far.agent.settle()
    return token


def connect(far: Far, *, receive_bytes: int | None = None) -> Trunk:
    """A trunk. `receive_bytes`: what our kernel takes of what we do not read."""
    token = announce(far)
    greeting = far.greeting(token)
    sock = socket.socket(socket.AF_INET6 if ":" in far.address else socket.AF_INET)
    far.sockets.append(sock)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.settimeout(30)
    sock.connect((far.address, far.port))
    sock.sendall(greeting)
    assert sock.recv(32, socket.MSG_WAITALL) == proof(far.secret, b"agent", greeting[:32])
    return Trunk(far, sock, token)

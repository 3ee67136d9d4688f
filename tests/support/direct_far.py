"""The host's side of direct connections, and servers, for the tests of the agent as a local child."""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from autoforward.agent_protocol import decoder
from tests.support.agent_client import TIMEOUT_S, AgentClient, Stream, cpu_s

LOOPBACK = "127.0.0.1"
LINGER_0 = struct.pack("ii", 1, 0)

Serve = Callable[..., int]
NewFar = Callable[..., "Far"]


def proof(secret: bytes, label: bytes, start: bytes) -> bytes:
    return hmac.digest(secret, b"autoforward direct " + label + start, "sha256")


@dataclass
class Far:
    """The agent with its listener for direct connections."""

    agent: AgentClient
    address: str
    port: int
    secret: bytes
    sockets: list[socket.socket] = field(default_factory=list)

    def greeting(self, token: bytes, secret: bytes | None = None) -> bytes:
        start = token + os.urandom(16)
        return start + proof(secret or self.secret, b"host", start)

    def expect(self, stream: Stream) -> bytes:
        """Announces a connection for the stream; its token."""
        token = os.urandom(16)
        self.agent.send(decoder.encode_direct(stream.number, token))
        self.agent.settle()
        return token

    def dial(self, greeting: bytes) -> socket.socket:
        connection = socket.create_connection((self.address, self.port), TIMEOUT_S)
        self.sockets.append(connection)
        connection.sendall(greeting)
        return connection

    def connect(self, stream: Stream) -> socket.socket:
        """A proven connection for the stream."""
        greeting = self.greeting(self.expect(stream))
        connection = self.dial(greeting)
        assert connection.recv(100) == proof(self.secret, b"agent", greeting[:32])
        return connection

    def move(self, stream: Stream) -> socket.socket:
        """The stream goes over a connection of its own from now on, both ways."""
        connection = self.connect(stream)
        self.agent.wait(lambda: not stream.outgoing, "all that goes before")
        self.agent.send(decoder.encode_move(stream.number))
        self.agent.wait(lambda: stream.moved, "MOVE")
        return connection


class Server:
    """A handler for one connection; `ended` once it is through, with how the far side ended in `saw`."""

    def __init__(self, talk: Callable[[socket.socket], None] | None = None) -> None:
        self.talk = talk
        self.received = bytearray()
        self.saw = ""
        self.ended = threading.Event()
        self.go = threading.Event()

    def __call__(self, connection: socket.socket) -> None:
        if self.talk:
            self.talk(connection)
        try:
            while data := connection.recv(1 << 16):
                self.received += data
            self.saw = "end"
        except ConnectionResetError:
            self.saw = "reset"
        self.ended.set()
        if self.saw == "end":
            self.go.wait(TIMEOUT_S)
            connection.sendall(b"late answer")


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while data := connection.recv(1 << 18):
        parts.append(data)
    return b"".join(parts)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    connection.close()


def is_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


def idle_cpu_s(agent: AgentClient) -> float:
    """What it uses in half a second without events."""
    agent.settle()
    before = cpu_s(agent)
    threading.Event().wait(0.5)
    return cpu_s(agent) - before


def closed_silently(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True  # it had not read all of it

"""Direct connections of the agent as a local child: the proof, the switch in mid-stream, and every end. Twice: plain, and
with the sanitizers. Own addresses are loopback's here."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autoforward import wire
from autoforward.frames import Listening
from tests.local.agent_client import TIMEOUT_S, WINDOW, AgentClient, Stream, cpu_s, descriptors, echo
from tests.local.conftest import LOOPBACK, StartAgent

MEBIBYTE = 1 << 20
EADDRNOTAVAIL, ECONNRESET = 99, 104
LINGER_0 = struct.pack("ii", 1, 0)

Serve = Callable[..., int]


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
        self.agent.send(wire.encode_direct(stream.number, token))
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
        self.agent.send(wire.encode_move(stream.number))
        self.agent.wait(lambda: stream.moved, "MOVE")
        return connection


@pytest.fixture
def far(start: StartAgent) -> Iterator[Callable[..., Far]]:
    made: list[Far] = []

    def begin(address: str = LOOPBACK, *arguments: str) -> Far:
        agent, secret = start(*arguments), os.urandom(16)
        agent.send(wire.encode_listen(secret, address))
        agent.wait(lambda: bool(agent.listening), "LISTENING")
        assert agent.listening[0].errno == 0 and agent.listening[0].port
        made.append(Far(agent, address, agent.listening[0].port, secret))
        return made[-1]

    yield begin
    for one in made:
        for sock in one.sockets:
            sock.close()


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


# The listener.


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_it_listens_there_and_nobody_takes_that_for_a_servers_port(far: Callable[..., Far], address: str) -> None:
    direct = far(address)
    direct.agent.send(wire.encode_watch(100))
    direct.agent.wait(lambda: bool(direct.agent.snapshots), "a snapshot")
    assert direct.port not in {entry.port for entry in direct.agent.snapshots[0].entries}
    socket.create_connection((address, direct.port), TIMEOUT_S).close()


def test_no_address_of_its_own(start: StartAgent) -> None:
    agent = start()
    before = descriptors(agent)
    agent.send(wire.encode_listen(bytes(16), "192.0.2.1"))
    agent.wait(lambda: bool(agent.listening), "LISTENING")
    assert agent.listening == [Listening(0, EADDRNOTAVAIL)]
    assert descriptors(agent) == before


def test_nothing_listens_before_listen(start: StartAgent, serve: Serve) -> None:
    agent = start()
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    agent.send(wire.encode_direct(1, bytes(16)))
    assert agent.until_end() == 3
    assert agent.bye and "direct before listen" in agent.bye.text


def closed_silently(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True  # it had not read all of it


@pytest.mark.parametrize("what", ["other words", "another secret", "cut short"])
def test_who_cannot_prove_it_hears_nothing_and_16_end_the_listener(
    far: Callable[..., Far], serve: Serve, what: str
) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    token = direct.expect(stream)
    before = descriptors(agent)
    for count in range(16):
        agent.settle()
        assert len(agent.listening) == 1, f"after {count}"
        words = {
            "other words": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(64),
            "another secret": direct.greeting(token, os.urandom(16)),
            "cut short": direct.greeting(token)[:63],
        }[what]
        connection = direct.dial(words)
        if what == "cut short":
            connection.shutdown(socket.SHUT_WR)
        assert closed_silently(connection)
    agent.wait(lambda: len(agent.listening) == 2, "the end of the listener")
    assert agent.listening[1] == Listening(0, 0)
    with pytest.raises(ConnectionRefusedError):
        direct.dial(b"")
    agent.upload(stream, b"still there")
    agent.wait(lambda: stream.received == b"still there", "echo")
    assert descriptors(agent) == before - 1 + (stream.opened is None)


def test_the_slow_are_closed_and_counted_and_8_hold_nobody_up_for_long(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    greeting = direct.greeting(direct.expect(stream))
    began = time.monotonic()
    slow = [direct.dial(b"") for _ in range(8)]
    slow += [direct.dial(greeting[:40])]
    proven = direct.dial(greeting)
    assert proven.recv(100) == proof(direct.secret, b"agent", greeting[:32])
    assert all(closed_silently(connection) for connection in slow)
    assert time.monotonic() - began >= 2
    for _ in range(16 - len(slow)):
        assert len(agent.listening) == 1
        assert closed_silently(direct.dial(bytes(64)))
        agent.settle()
    agent.wait(lambda: len(agent.listening) == 2, "the end of the listener")


def test_a_greeting_may_come_in_pieces_and_a_token_is_good_once(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    greeting = direct.greeting(direct.expect(stream))
    first = direct.dial(greeting[:20])
    agent.settle()
    first.sendall(greeting[20:50])
    agent.settle()
    first.sendall(greeting[50:])
    assert first.recv(100) == proof(direct.secret, b"agent", greeting[:32])
    for _ in range(10):  # with the next ten more than it would take to end the listener, if these counted as bad
        assert closed_silently(direct.dial(greeting))
    agent.send(wire.encode_move(1))
    agent.wait(lambda: stream.moved, "MOVE")
    for _ in range(10):
        assert closed_silently(direct.dial(greeting))
    agent.settle()
    assert len(agent.listening) == 1
    first.sendall(b"hello")
    assert first.recv(100) == b"hello"


def test_a_later_direct_replaces_token_and_connection(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    old = direct.greeting(direct.expect(stream))
    connection = direct.connect(stream)
    assert closed_silently(direct.dial(old))
    second = direct.move(stream)
    assert connection.recv(1) == b""
    second.sendall(b"hello")
    assert second.recv(100) == b"hello"


def test_64_at_once(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    port = serve(echo)
    streams = [agent.open(number, port) for number in range(1, 66)]
    connections = [direct.move(stream) for stream in streams[:64]]
    for _ in range(20):  # many more than it would take, if these were counted as bad
        greeting = direct.greeting(direct.expect(streams[64]))
        assert closed_silently(direct.dial(greeting))
    agent.settle()
    assert len(agent.listening) == 1
    agent.send(wire.encode_reset(1))
    agent.settle()
    connections[0] = direct.dial(greeting)
    assert connections[0].recv(100) == proof(direct.secret, b"agent", greeting[:32])
    agent.send(wire.encode_move(65))
    agent.wait(lambda: streams[64].moved, "MOVE")
    for number, connection in enumerate(connections):
        connection.sendall(b"%d" % number)
        assert connection.recv(100) == b"%d" % number
    agent.send(b"".join(wire.encode_reset(stream.number) for stream in streams))
    agent.settle()
    assert descriptors(agent) == before


# What is not the protocol.


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (wire.encode_listen(bytes(16), LOOPBACK), "listen twice"),
        (wire.encode_move(2), "move without a connection"),
        (wire.encode_move(3), "move without a connection"),
        (wire.encode_direct(3, bytes(16)), "direct for udp"),
        (wire.encode_move(1), "move twice"),
        (wire.encode_data(1, b"x"), "data after move"),
        (wire.encode_eof(1) + wire.encode_data(1, b"x"), "data after eof"),
        (wire.encode_eof(1) + wire.encode_eof(1), "eof twice"),
    ],
)
def test_what_is_not_the_protocol_ends_it(far: Callable[..., Far], serve: Serve, frame: bytes, word: str) -> None:
    """Stream 1 is moved, 2 is not, 3 is of UDP."""
    direct = far()
    agent = direct.agent
    port = serve(echo)
    connection = direct.move(agent.open(1, port))
    agent.open(2, port)
    agent.open(3, port, udp=True)
    agent.send(frame)
    assert agent.until_end() == 3
    assert agent.bye and word in agent.bye.text
    assert is_reset(connection)


def test_what_crosses_the_end_or_the_move_is_passed_over(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    connection = direct.move(stream)
    agent.send(wire.encode_credit(1, 1 << 30) * 4 + wire.encode_direct(1, bytes(16)))
    agent.send(wire.encode_move(99) + wire.encode_direct(99, bytes(16)))
    agent.settle()
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"


# Bytes.


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_both_ways_at_once_with_the_switch_in_mid_stream(far: Callable[..., Far], serve: Serve, address: str) -> None:
    direct = far(address)
    agent = direct.agent
    before = descriptors(agent)
    payload = random.randbytes(MEBIBYTE) * 48
    first, later = payload[: 3 * MEBIBYTE + 77], payload[3 * MEBIBYTE + 77 :]
    stream = agent.open(1, serve(echo))
    agent.upload(stream, first)
    agent.wait(lambda: len(stream.received) > MEBIBYTE, "the first bytes")
    connection = direct.move(stream)
    rest: list[bytes] = []

    def send() -> None:
        connection.sendall(later)
        connection.shutdown(socket.SHUT_WR)

    reader = in_thread(lambda: rest.append(read_all(connection)))
    in_thread(send)
    agent.send(wire.encode_eof(1))
    agent.wait(lambda: stream.eof, "end", 90)
    reader.join(TIMEOUT_S)
    assert len(stream.received) < len(payload) / 2 < len(rest[0])
    assert hashlib.sha256(stream.received + rest[0]).digest() == hashlib.sha256(payload).digest()
    agent.settle()
    assert descriptors(agent) == before


def test_a_download_moves_while_the_mux_is_stalled(far: Callable[..., Far], serve: Serve) -> None:
    """The agent's MOVE does not wait for credit: what the server said is on the one path or the other, once."""
    payload = random.randbytes(24 * MEBIBYTE)
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(lambda connection: connection.sendall(payload)))
    stream.frozen = True
    agent.wait(lambda: len(stream.received) == WINDOW, "a window")
    connection = direct.move(stream)
    rest = read_all(connection)
    agent.wait(lambda: stream.eof, "end")
    assert stream.received + rest == payload


def test_what_the_agent_keeps_for_a_slow_server_goes_first(far: Callable[..., Far], serve: Serve) -> None:
    let_go, done = threading.Event(), threading.Event()
    digest = hashlib.sha256()

    def read_late(connection: socket.socket) -> None:
        assert let_go.wait(TIMEOUT_S)
        while data := connection.recv(1 << 16):
            digest.update(data)
        done.set()

    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(read_late))
    payload = random.randbytes(32 * MEBIBYTE)
    agent.upload(stream, payload)
    agent.wait(lambda: stream.opened is not None and not agent.pending and stream.credit == 0, "a stall")
    sent = len(payload) - len(stream.outgoing)
    stream.outgoing.clear()
    connection = direct.move(stream)
    sender = in_thread(lambda: connection.sendall(payload[sent:]))
    assert idle_cpu_s(agent) < 0.2
    let_go.set()
    sender.join(TIMEOUT_S)
    connection.shutdown(socket.SHUT_WR)
    assert not done.wait(0.2)
    agent.send(wire.encode_eof(1))
    agent.settle()
    assert done.wait(TIMEOUT_S) and digest.digest() == hashlib.sha256(payload).digest()


@pytest.mark.parametrize("up", [True, False], ids=["a server", "none"])
def test_moved_while_the_dial_takes_its_time(far: Callable[..., Far], serve: Serve, tmp_path: Path, up: bool) -> None:
    """The nameserver is mute, so that the second address has its turn after 2 s: all is said by then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names, socket.create_server((LOOPBACK, 0)) as closed:
        names.bind((LOOPBACK, 0))
        resolv = tmp_path / "resolv.conf"
        resolv.write_text(f"nameserver {LOOPBACK}\n")
        direct = far(LOOPBACK, "--dns-port", str(names.getsockname()[1]), "--resolv", str(resolv))
        agent = direct.agent
        before = descriptors(agent)
        port = serve(echo) if up else closed.getsockname()[1]
        closed.close()
        stream = agent.open(1, port, "mute.invalid", LOOPBACK)
        agent.upload(stream, b"over the mux, ")
        connection = direct.move(stream)
        assert stream.opened is None
        connection.sendall(b"directly")
        connection.shutdown(socket.SHUT_WR)
        agent.send(wire.encode_eof(1))
        agent.settle()
        if up:
            assert read_all(connection) == b"over the mux, directly"
            agent.wait(lambda: stream.eof, "end")
        else:
            agent.wait(lambda: stream.refused is not None, "refusal")
            assert closed_silently(connection)
        agent.settle()
        assert descriptors(agent) == before


def test_random_lives(far: Callable[..., Far], serve: Serve) -> None:
    """Streams that are moved, or nearly, and ended in every order by either side: the agent stands, and keeps nothing."""
    rng = random.Random(7)

    def whim(connection: socket.socket) -> None:
        own = random.Random(connection.getpeername()[1])
        for _ in range(own.randrange(4)):
            connection.sendall(bytes(own.randrange(1, 1 << 20)))
            if own.random() < 0.5:
                connection.recv(1 << 16)
        if own.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        elif own.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)
            echo(connection)

    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    ports = [serve(whim), serve(whim), serve(echo)]
    living: dict[int, socket.socket] = {}
    over: set[int] = set()
    for number in range(1, 151):
        stream = agent.open(number, rng.choice(ports))
        stream.frozen = rng.random() < 0.2
        agent.upload(stream, bytes(rng.randrange(1, 1 << 17)))
        greeting = direct.greeting(direct.expect(stream))
        connection = direct.dial(greeting)
        if not stream.over and connection.recv(100):
            living[number] = connection
            connection.settimeout(0)
            if rng.random() < 0.8 and not stream.outgoing:
                agent.send(wire.encode_move(number))
        for other in rng.sample(sorted(living), min(len(living), 4)):
            stream, connection, choice = agent.streams[other], living[other], rng.random()
            with contextlib.suppress(OSError):
                if choice < 0.4:
                    connection.send(bytes(rng.randrange(1, 1 << 20)))
                elif choice < 0.7:
                    connection.recv(1 << 20)
                elif choice < 0.8:
                    connection.shutdown(socket.SHUT_WR)
                elif choice < 0.9:
                    reset(living.pop(other))
            if choice > 0.6 and other not in over and not stream.outgoing:
                over.add(other)
                agent.send(wire.encode_eof(other) if rng.random() < 0.5 else wire.encode_reset(other))
        agent.settle()
        if len(living) > 40:
            living.pop(min(living)).close()
    for stream in agent.streams.values():
        stream.outgoing.clear()
        agent.send(wire.encode_reset(stream.number))
    for connection in direct.sockets:
        connection.close()
    agent.settle()
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors(agent) != before:
        assert time.monotonic() < deadline, "descriptors are left"
        agent.settle()


# Ends.


@pytest.mark.parametrize("first", ["EOF", "FIN"])
def test_the_hosts_end_takes_both_words_and_the_answer_may_come_late(
    far: Callable[..., Far], serve: Serve, first: str
) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    agent.upload(stream, b"over the mux, ")
    connection = direct.move(stream)
    connection.sendall(b"directly")
    if first == "EOF":
        agent.send(wire.encode_eof(1))
    else:
        connection.shutdown(socket.SHUT_WR)
    assert idle_cpu_s(agent) < 0.2
    assert not server.ended.is_set()
    if first == "EOF":
        connection.sendall(b", and more")
        connection.shutdown(socket.SHUT_WR)
    else:
        agent.send(wire.encode_eof(1))
        agent.settle()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "end"
    assert server.received == b"over the mux, directly" + (b", and more" if first == "EOF" else b"")
    assert idle_cpu_s(agent) < 0.2
    assert not stream.over
    server.go.set()
    assert read_all(connection) == b"late answer"
    agent.wait(lambda: stream.eof, "end")
    agent.settle()
    assert descriptors(agent) == before


def test_the_servers_end_leaves_the_other_way_open(far: Callable[..., Far], serve: Serve) -> None:
    def close_first(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"all I have to say")
        connection.shutdown(socket.SHUT_WR)

    direct = far()
    agent, server = direct.agent, Server(close_first)
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    connection = direct.move(stream)
    connection.sendall(b"x")
    assert read_all(connection) == b"all I have to say"
    agent.wait(lambda: stream.eof, "end")
    assert idle_cpu_s(agent) < 0.2
    payload = random.randbytes(5 * MEBIBYTE)
    connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)
    agent.send(wire.encode_eof(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "end" and server.received == payload
    server.go.set()
    agent.settle()
    assert descriptors(agent) == before


def test_ends_before_the_move_count(far: Callable[..., Far], serve: Serve) -> None:
    """Of the host's end the server knows already; the agent's is said once more, as a FIN."""
    direct = far()
    agent, server = direct.agent, Server()
    stream = agent.open(1, serve(server))
    agent.upload(stream, b"request")
    agent.send(wire.encode_eof(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S)
    connection = direct.move(stream)
    connection.shutdown(socket.SHUT_WR)
    server.go.set()
    assert read_all(connection) == b"late answer"
    agent.wait(lambda: stream.eof, "end")

    closing = Server(lambda connection: connection.shutdown(socket.SHUT_WR))
    stream = agent.open(2, serve(closing))
    agent.wait(lambda: stream.eof, "the server's end")
    connection = direct.move(stream)
    assert connection.recv(1) == b""
    connection.sendall(b"and this")
    connection.shutdown(socket.SHUT_WR)
    agent.send(wire.encode_eof(2))
    agent.settle()
    assert closing.ended.wait(TIMEOUT_S) and closing.received == b"and this"
    closing.go.set()


@pytest.mark.parametrize("busy", [False, True], ids=["quiet host", "host that goes on sending"])
def test_a_servers_reset_comes_after_its_bytes(far: Callable[..., Far], serve: Serve, busy: bool) -> None:
    words = random.randbytes(MEBIBYTE)
    go = threading.Event()

    def end_in_a_reset(connection: socket.socket) -> None:
        connection.sendall(words)
        assert go.wait(TIMEOUT_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    stream = agent.open(1, serve(end_in_a_reset))
    stream.frozen = True
    connection = direct.move(stream)
    if busy:
        connection.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                connection.send(bytes(1 << 20))
        connection.settimeout(TIMEOUT_S)
    assert idle_cpu_s(agent) < 0.2
    got = bytearray(stream.received)
    while len(got) < len(words) - 100:
        got += connection.recv(100_000)
    go.set()
    agent.wait(lambda: stream.over, "end")
    assert stream.reset == ECONNRESET and not stream.eof
    assert got + read_all(connection) == words
    connection.close()
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors(agent) != before:
        assert time.monotonic() < deadline, "descriptors are left"
        agent.settle()


def test_the_hosts_reset_is_one_for_both(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    connection = direct.move(stream)
    connection.sendall(b"half of it")
    agent.send(wire.encode_reset(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    assert is_reset(connection)
    assert descriptors(agent) == before


def test_a_broken_connection_is_a_reset_for_both(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    connection = direct.move(stream)
    connection.sendall(b"half of it")
    reset(connection)
    agent.wait(lambda: stream.reset is not None, "RESET")
    assert stream.reset == ECONNRESET
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    agent.settle()
    assert descriptors(agent) == before


def test_a_fin_alone_ends_nothing(far: Callable[..., Far], serve: Serve) -> None:
    """A killed supervisor's sockets say FIN: its servers must not take half a request for a whole one."""
    direct = far()
    agent, server = direct.agent, Server()
    stream = agent.open(1, serve(server))
    connection = direct.move(stream)
    connection.sendall(b"half of it")
    connection.close()
    assert idle_cpu_s(agent) < 0.2
    assert not server.ended.is_set() and not stream.over
    assert agent.process.stdin
    agent.process.stdin.close()
    assert server.ended.wait(TIMEOUT_S)
    assert server.saw == "reset" and bytes(server.received) in (b"", b"half of it")
    assert agent.process.wait(TIMEOUT_S) == 0


def test_given_up_before_the_move(far: Callable[..., Far], serve: Serve) -> None:
    """The stream stays on the mux; one whose MOVE crossed the loss of its connection is reset, and only that one."""
    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    port = serve(echo)
    stays, crossing, again = (agent.open(number, port) for number in (1, 2, 3))
    for stream in (stays, crossing, again):
        connection = direct.connect(stream)
        agent.settle()
        reset(connection)
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors(agent) != before + 3:
        assert time.monotonic() < deadline, "descriptors are left"
        agent.settle()
    agent.send(wire.encode_move(2))
    agent.wait(lambda: crossing.over, "RESET")
    assert crossing.reset == ECONNRESET and not crossing.moved
    agent.upload(stays, b"here")
    agent.wait(lambda: stays.received == b"here", "echo")
    connection = direct.move(again)
    connection.sendall(b"there")
    assert connection.recv(100) == b"there"


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(1 << 16))


def test_the_end_of_stdin_cuts_busy_connections_at_once(far: Callable[..., Far], serve: Serve) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    flood_port, sink_port = serve(flood), serve(server)
    downloads = [direct.move(agent.open(number, flood_port)) for number in range(1, 9)]
    ends: list[bool] = []
    readers = [in_thread(lambda connection=connection: ends.append(is_reset(connection))) for connection in downloads]  # type: ignore[misc]
    upload = direct.move(agent.open(9, sink_port))
    stalled = direct.move(agent.open(10, flood_port))

    def send() -> None:
        with contextlib.suppress(OSError):
            while True:
                upload.sendall(bytes(1 << 16))

    sender = in_thread(send)
    agent.settle()
    assert agent.process.stdin
    agent.process.stdin.close()
    began = time.monotonic()
    assert agent.process.wait(10) == 0
    took_s = time.monotonic() - began
    assert took_s < (1 if "asan" not in str(agent.process.args) else 8)
    for thread in (*readers, sender):
        thread.join(TIMEOUT_S)
    assert ends == [True] * 8 and is_reset(stalled)
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"


@pytest.mark.parametrize("who", ["host", "server", "both"])
def test_who_does_not_read_holds_up_the_other_and_costs_nothing(
    far: Callable[..., Far], serve: Serve, who: str
) -> None:
    direct = far()
    agent = direct.agent
    go = threading.Event()
    total = 24 * MEBIBYTE
    got: list[int] = []

    def talk(connection: socket.socket) -> None:
        sender = in_thread(lambda: connection.sendall(bytes(total)) if who != "server" else None)
        assert go.wait(TIMEOUT_S) if who != "host" else True
        count = 0
        while data := connection.recv(1 << 18):
            count += len(data)
        got.append(count)
        sender.join(TIMEOUT_S)

    stream = agent.open(1, serve(talk))
    stream.frozen = True
    connection = direct.move(stream)
    sender = in_thread(lambda: connection.sendall(bytes(total)) if who != "host" else None)
    threading.Event().wait(0.5)  # until the buffers are full, whatever they take
    assert idle_cpu_s(agent) < 0.2
    assert sender.is_alive() or who == "host"
    go.set()
    rest: list[int] = []
    reader = in_thread(lambda: rest.append(len(read_all(connection))))
    sender.join(TIMEOUT_S)
    connection.shutdown(socket.SHUT_WR)
    agent.send(wire.encode_eof(1))
    agent.wait(lambda: stream.eof, "end")
    reader.join(TIMEOUT_S)
    assert got == [total if who != "host" else 0]
    assert len(stream.received) + rest[0] == (total if who != "server" else 0)

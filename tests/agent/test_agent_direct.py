"""Direct connections of the agent as a local child: who gets one, and the switch in mid-stream. Twice: plain, and with
the sanitizers. Own addresses are loopback's here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import socket
import threading
import time
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import Listening
from tests.support.agent_client import TIMEOUT_S, WINDOW, descriptors, echo
from tests.support.direct_far import (
    LINGER_0,
    LOOPBACK,
    NewFar,
    Serve,
    closed_silently,
    idle_cpu_s,
    in_thread,
    is_reset,
    proof,
    read_all,
    reset,
)
from tests.support.local_fixtures import StartAgent
from tests.support.trunk_far import connect

pytestmark = pytest.mark.local

MEBIBYTE = 1 << 20
BURST, BAD_MS, PENDING = 64, 10, 8
"""Of connections that prove nothing: so many at once, one each so many ms after that; so many are looked at at a time."""
EADDRNOTAVAIL = 99


# The listener.


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_direct_listener_is_not_shown_as_a_server(far: NewFar, address: str) -> None:
    direct = far(address)
    direct.agent.send(decoder.encode_watch(100))
    direct.agent.wait(lambda: bool(direct.agent.snapshots), "a snapshot")
    assert direct.port not in {entry.port for entry in direct.agent.snapshots[0].entries}
    socket.create_connection((address, direct.port), TIMEOUT_S).close()


def test_listen_on_a_foreign_address_is_refused(start: StartAgent) -> None:
    agent = start()
    before = descriptors(agent)
    agent.send(decoder.encode_listen(bytes(16), "192.0.2.1"))
    agent.wait(lambda: bool(agent.listening), "LISTENING")
    assert agent.listening == [Listening(0, EADDRNOTAVAIL)]
    assert descriptors(agent) == before


def test_direct_listener_is_closed_before_listen(start: StartAgent, serve: Serve) -> None:
    agent = start()
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    agent.send(decoder.encode_direct(1, bytes(16)))
    assert agent.until_end() == 3
    assert agent.bye and "direct before listen" in agent.bye.text


def test_listener_is_closed_and_opened_again_under_what_is_proven(far: NewFar, serve: Serve) -> None:
    """ "Listen no more" ends the listener and who has not proven himself; moved streams and the trunk go on."""
    direct = far()
    agent = direct.agent
    moved = direct.move(agent.open(1, serve(echo)))
    line = connect(direct)
    unproven = direct.dial(b"half a greet")
    agent.settle()
    agent.send(decoder.encode_listen(b"", ""))
    agent.settle()
    assert closed_silently(unproven)
    with pytest.raises(ConnectionRefusedError):
        direct.dial(b"")
    assert len(agent.listening) == 1, "what the host wanted is not reported"
    moved.sendall(b"hello")
    assert moved.recv(100) == b"hello"
    agent.send(decoder.encode_listen(b"", ""))  # once more is nothing
    secret = os.urandom(16)
    agent.send(decoder.encode_listen(secret, LOOPBACK))
    agent.wait(lambda: len(agent.listening) == 2, "the second listener")
    stream = agent.open(2, serve(echo))
    token = direct.expect(stream)
    before = direct.secret
    direct.port, direct.secret = agent.listening[1].port, secret
    assert closed_silently(direct.dial(direct.greeting(token, before)))
    assert direct.dial(direct.greeting(token)).recv(100)
    carried = line.open(3, serve(echo))
    line.upload(carried, b"over the trunk of before")
    line.wait(lambda: carried.received == b"over the trunk of before", "echo on the trunk")


@pytest.mark.parametrize("what", ["other words", "another secret", "cut short"])
def test_client_without_proof_hears_nothing_and_ends_nothing(far: NewFar, serve: Serve, what: str) -> None:
    """However many they are: sixteen in the agent's whole life once ended the listener for good."""
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    token = direct.expect(stream)
    before = descriptors(agent)
    for _ in range(4 * BURST):
        words = {
            "other words": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(64),
            "another secret": direct.greeting(token, os.urandom(16)),
            "cut short": direct.greeting(token)[:63],
        }[what]
        connection = direct.dial(words)
        if what == "cut short":
            connection.shutdown(socket.SHUT_WR)
        assert closed_silently(connection)
        connection.close()
    greeting = direct.greeting(token)
    assert direct.dial(greeting).recv(100) == proof(direct.secret, b"agent", greeting[:32])
    agent.upload(stream, b"still there")
    agent.wait(lambda: stream.received == b"still there", "echo")
    assert len(agent.listening) == 1
    assert descriptors(agent) == before + 1 + 4  # the proven one, and its pipes


def test_flood_of_clients_is_accepted_at_a_rate_and_holds_up_nothing_else(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    before, closed, over = descriptors(agent), [0] * 4, threading.Event()
    began = time.monotonic()

    def flood(index: int) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.socket() as connection:
                connection.settimeout(1.0)
                connection.connect((LOOPBACK, direct.port))
                connection.sendall(bytes(64))
                closed[index] += connection.recv(1) == b""

    floods = [in_thread(lambda index=index: flood(index)) for index in range(len(closed))]  # type: ignore[misc]
    most = 0
    for count in range(1, 101):
        agent.upload(stream, b"x")
        agent.wait(lambda count=count: len(stream.received) == count, "echo")  # type: ignore[misc]
        most = max(most, descriptors(agent))
        over.wait(0.02)
    passed_ms = (time.monotonic() - began) * 1000
    over.set()
    for thread in floods:
        thread.join(TIMEOUT_S)
    assert BURST < sum(closed) <= BURST + passed_ms / BAD_MS + 2 * PENDING
    assert most <= before + PENDING
    connection = direct.move(stream)
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"
    assert len(agent.listening) == 1


def test_silent_clients_are_closed_after_a_while_and_hold_up_no_other(far: NewFar, serve: Serve) -> None:
    """As many as the backlog has room for, all before the host."""
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    greeting = direct.greeting(direct.expect(stream))
    alone = direct.dial(greeting[:40])
    began = time.monotonic()
    assert closed_silently(alone)
    by_itself_s = time.monotonic() - began
    began = time.monotonic()
    silent = [direct.dial(b"") for _ in range(6 * PENDING)]
    proven = direct.dial(greeting)
    assert proven.recv(100) == proof(direct.secret, b"agent", greeting[:32])
    assert time.monotonic() - began < by_itself_s, "their time is short where others wait"
    assert all(closed_silently(connection) for connection in silent)
    assert len(agent.listening) == 1


def test_listener_without_descriptors_waits_for_some(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    agent.wait(lambda: stream.opened == 0, "opening")
    greeting = direct.greeting(direct.expect(stream))
    limits = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    waiting = direct.dial(greeting)
    agent.settle()
    assert idle_cpu_s(agent) < 0.2
    resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, limits)
    assert waiting.recv(100) == proof(direct.secret, b"agent", greeting[:32])
    assert len(agent.listening) == 1


def test_a_greeting_may_come_in_pieces_and_a_token_is_good_once(far: NewFar, serve: Serve) -> None:
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
    for _ in range(10):
        assert closed_silently(direct.dial(greeting))
    agent.send(decoder.encode_move(1))
    agent.wait(lambda: stream.moved, "MOVE")
    for _ in range(10):
        assert closed_silently(direct.dial(greeting))
    agent.settle()
    assert len(agent.listening) == 1
    first.sendall(b"hello")
    assert first.recv(100) == b"hello"


def test_a_later_direct_replaces_token_and_connection(far: NewFar, serve: Serve) -> None:
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


def test_sixty_four_direct_connections_at_once(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    port = serve(echo)
    streams = [agent.open(number, port) for number in range(1, 66)]
    connections = [direct.move(stream) for stream in streams[:64]]
    for _ in range(20):
        greeting = direct.greeting(direct.expect(streams[64]))
        assert closed_silently(direct.dial(greeting))
    agent.settle()
    assert len(agent.listening) == 1
    agent.send(decoder.encode_reset(1))
    agent.settle()
    connections[0] = direct.dial(greeting)
    assert connections[0].recv(100) == proof(direct.secret, b"agent", greeting[:32])
    agent.send(decoder.encode_move(65))
    agent.wait(lambda: streams[64].moved, "MOVE")
    for number, connection in enumerate(connections):
        connection.sendall(b"%d" % number)
        assert connection.recv(100) == b"%d" % number
    agent.send(b"".join(decoder.encode_reset(stream.number) for stream in streams))
    agent.settle()
    assert descriptors(agent) == before


# What is not the protocol.


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (decoder.encode_listen(bytes(16), LOOPBACK), "listen twice"),
        (decoder.encode_move(2), "move without a connection"),
        (decoder.encode_move(3), "move without a connection"),
        (decoder.encode_direct(3, bytes(16)), "direct for udp"),
        (decoder.encode_move(1), "move twice"),
        (decoder.encode_data(1, b"x"), "data after move"),
        (decoder.encode_eof(1) + decoder.encode_data(1, b"x"), "data after eof"),
        (decoder.encode_eof(1) + decoder.encode_eof(1), "eof twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_direct_frames_end_the_agent(far: NewFar, serve: Serve, frame: bytes, word: str) -> None:
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


def test_late_frames_of_a_moved_or_unknown_stream_are_ignored(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    stream = agent.open(1, serve(echo))
    connection = direct.move(stream)
    agent.send(decoder.encode_credit(1, 1 << 30) * 4 + decoder.encode_direct(1, bytes(16)))
    agent.send(decoder.encode_move(99) + decoder.encode_direct(99, bytes(16)))
    agent.settle()
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"


# Bytes.


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_bytes_both_ways_survive_the_switch_in_mid_stream(far: NewFar, serve: Serve, address: str) -> None:
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
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: stream.eof, "end", 90)
    reader.join(TIMEOUT_S)
    assert len(stream.received) < len(payload) / 2 < len(rest[0])
    assert hashlib.sha256(stream.received + rest[0]).digest() == hashlib.sha256(payload).digest()
    agent.settle()
    assert descriptors(agent) == before


def test_a_download_moves_while_the_mux_is_stalled(far: NewFar, serve: Serve) -> None:
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


def test_bytes_kept_for_a_slow_server_go_before_those_of_the_direct_connection(far: NewFar, serve: Serve) -> None:
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
    agent.send(decoder.encode_eof(1))
    agent.settle()
    assert done.wait(TIMEOUT_S) and digest.digest() == hashlib.sha256(payload).digest()


@pytest.mark.parametrize("up", [True, False], ids=["a server", "none"])
def test_stream_moves_while_its_dial_takes_time(far: NewFar, serve: Serve, tmp_path: Path, up: bool) -> None:
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
        agent.send(decoder.encode_eof(1))
        agent.settle()
        if up:
            assert read_all(connection) == b"over the mux, directly"
            agent.wait(lambda: stream.eof, "end")
        else:
            agent.wait(lambda: stream.refused is not None, "refusal")
            assert closed_silently(connection)
        agent.settle()
        assert descriptors(agent) == before


def test_random_lives(far: NewFar, serve: Serve) -> None:
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
                agent.send(decoder.encode_move(number))
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
                agent.send(decoder.encode_eof(other) if rng.random() < 0.5 else decoder.encode_reset(other))
        agent.settle()
        if len(living) > 40:
            living.pop(min(living)).close()
    for stream in agent.streams.values():
        stream.outgoing.clear()
        agent.send(decoder.encode_reset(stream.number))
    for connection in direct.sockets:
        connection.close()
    agent.settle()
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors(agent) != before:
        assert time.monotonic() < deadline, "descriptors are left"
        agent.settle()

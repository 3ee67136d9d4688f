"""Direct connections of the agent as a local child: every end, and what waiting costs. Twice: plain, and with the
sanitizers."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import pytest

from autoforward.agent_protocol import decoder
from tests.support.agent_client import TIMEOUT_S, descriptors, echo
from tests.support.direct_far import (
    LINGER_0,
    NewFar,
    Serve,
    Server,
    idle_cpu_s,
    in_thread,
    is_reset,
    read_all,
    reset,
)

pytestmark = pytest.mark.local

MEBIBYTE = 1 << 20
ECONNRESET = 104


# Ends.


@pytest.mark.parametrize("first", ["EOF", "FIN"])
def test_the_hosts_end_takes_both_words_and_the_answer_may_come_late(far: NewFar, serve: Serve, first: str) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    agent.upload(stream, b"over the mux, ")
    connection = direct.move(stream)
    connection.sendall(b"directly")
    if first == "EOF":
        agent.send(decoder.encode_eof(1))
    else:
        connection.shutdown(socket.SHUT_WR)
    assert idle_cpu_s(agent) < 0.2
    assert not server.ended.is_set()
    if first == "EOF":
        connection.sendall(b", and more")
        connection.shutdown(socket.SHUT_WR)
    else:
        agent.send(decoder.encode_eof(1))
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


def test_the_servers_end_leaves_the_other_way_open(far: NewFar, serve: Serve) -> None:
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
    agent.send(decoder.encode_eof(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "end" and server.received == payload
    server.go.set()
    agent.settle()
    assert descriptors(agent) == before


def test_ends_before_the_move_count(far: NewFar, serve: Serve) -> None:
    """Of the host's end the server knows already, and no FIN is waited for; the agent's is said once more, as a FIN."""
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    agent.upload(stream, b"request")
    agent.send(decoder.encode_eof(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S)
    connection = direct.move(stream)
    server.go.set()
    assert read_all(connection) == b"late answer"
    agent.wait(lambda: stream.eof, "end")
    agent.settle()
    assert descriptors(agent) == before

    closing = Server(lambda connection: connection.shutdown(socket.SHUT_WR))
    stream = agent.open(2, serve(closing))
    agent.wait(lambda: stream.eof, "the server's end")
    connection = direct.move(stream)
    assert connection.recv(1) == b""
    connection.sendall(b"and this")
    connection.shutdown(socket.SHUT_WR)
    agent.send(decoder.encode_eof(2))
    agent.settle()
    assert closing.ended.wait(TIMEOUT_S) and closing.received == b"and this"
    closing.go.set()


@pytest.mark.parametrize("busy", [False, True], ids=["quiet host", "host that goes on sending"])
def test_a_servers_reset_comes_after_its_bytes(far: NewFar, serve: Serve, busy: bool) -> None:
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


def test_the_hosts_reset_is_one_for_both(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent, server = direct.agent, Server()
    before = descriptors(agent)
    stream = agent.open(1, serve(server))
    connection = direct.move(stream)
    connection.sendall(b"half of it")
    agent.send(decoder.encode_reset(1))
    agent.settle()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    assert is_reset(connection)
    assert descriptors(agent) == before


def test_a_broken_connection_is_a_reset_for_both(far: NewFar, serve: Serve) -> None:
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


def test_a_fin_alone_ends_nothing(far: NewFar, serve: Serve) -> None:
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


def test_direct_connection_given_up_before_the_move_leaves_the_stream_on_the_mux(far: NewFar, serve: Serve) -> None:
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
    agent.send(decoder.encode_move(2))
    agent.wait(lambda: crossing.over, "RESET")
    assert crossing.reset == ECONNRESET and not crossing.moved
    agent.upload(stays, b"here")
    agent.wait(lambda: stays.received == b"here", "echo")
    connection = direct.move(again)
    connection.sendall(b"there")
    assert connection.recv(100) == b"there"


def test_direct_bytes_and_their_end_may_come_before_the_move(far: NewFar, serve: Serve) -> None:
    """Two paths: the end of the one may be there before the MOVE on the other."""
    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    stream = agent.open(1, serve(echo))
    connection = direct.connect(stream)
    connection.sendall(b"early")
    connection.shutdown(socket.SHUT_WR)
    assert idle_cpu_s(agent) < 0.2
    agent.send(decoder.encode_data(1, b"first, ") + decoder.encode_move(1) + decoder.encode_eof(1))
    agent.wait(lambda: stream.eof, "end")
    assert stream.received + read_all(connection) == b"first, early"
    agent.settle()
    assert descriptors(agent) == before


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_hang_up_while_the_host_reads_nothing_costs_nothing(far: NewFar, serve: Serve, how: str) -> None:
    said: list[int] = []
    gone = threading.Event()

    def fill_and_go(connection: socket.socket) -> None:
        connection.settimeout(1)
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                count += connection.send(bytes(1 << 16))
        if how == "RST":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        connection.close()
        said.append(count)
        gone.set()

    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    stream = agent.open(1, serve(fill_and_go))
    stream.frozen = True
    connection = direct.move(stream)
    assert gone.wait(TIMEOUT_S)
    assert idle_cpu_s(agent) < 0.2
    assert not stream.over
    got = len(stream.received) + len(read_all(connection))
    if how == "FIN":
        agent.wait(lambda: stream.eof, "end")
        assert got == said[0]
        agent.send(decoder.encode_eof(1))
    else:
        agent.wait(lambda: stream.over, "end")
        assert stream.reset == ECONNRESET and 0 < got < said[0]
    connection.close()
    deadline = time.monotonic() + TIMEOUT_S
    while descriptors(agent) != before:
        assert time.monotonic() < deadline, "descriptors are left"
        agent.settle()


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(bytes(1 << 16))


def test_the_end_of_stdin_cuts_busy_connections_at_once(far: NewFar, serve: Serve) -> None:
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
def test_reader_that_stops_holds_up_the_writer_and_costs_no_cpu(far: NewFar, serve: Serve, who: str) -> None:
    direct = far()
    agent = direct.agent
    go = threading.Event()
    total = 192 * MEBIBYTE  # more than the buffers of three connections: newer kernels let each grow to 32 MiB
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
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: stream.eof, "end")
    reader.join(TIMEOUT_S)
    assert got == [total if who != "host" else 0]
    assert len(stream.received) + rest[0] == (total if who != "server" else 0)

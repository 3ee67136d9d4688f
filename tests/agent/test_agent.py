"""The agent as a local child, built here: the protocol, streams of every kind, and how it ends. Twice: plain, and with
the sanitizers."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder, frames
from tests.support import agent_wire
from tests.support.agent_client import WINDOW, AgentClient, cpu_s, descriptors, echo, wait_until
from tests.support.local_fixtures import StartAgent

pytestmark = pytest.mark.local

LOOPBACK = "127.0.0.1"
ECONNREFUSED, ECONNRESET, ENOENT = 111, 104, 2
MEBIBYTE = 1 << 20

Handler = Callable[[socket.socket], None]


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


# The beginning and the end.


def test_hello_both_ways(start: StartAgent) -> None:
    assert start().window == WINDOW


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x01", frames.MAGIC + b"\0\x02\0\0\0\x04\0\0"],
    ids=["http", "byte", "version"],
)
def test_wrong_hello_ends_the_agent_without_output(start: StartAgent, first: bytes) -> None:
    agent = start(greet=False)
    agent.send(first)
    assert agent.until_end() == 2
    assert not agent.window and agent.bye is None
    assert agent.stderr_text().startswith("agent: not our protocol: ")


def test_version_is_printed(binary: Path, start: StartAgent) -> None:
    agent = start("--version", greet=False)
    assert os.read(agent.stdout, 100) == b"autoforward-agent protocol 1\n"
    assert agent.process.wait(10) == 0


def test_end_of_stdin_ends_the_agent_at_once_whatever_is_open(start: StartAgent, serve: Callable[..., int]) -> None:
    ends: list[bytes | str] = []
    told = threading.Event()

    def note_the_end(connection: socket.socket) -> None:
        connection.recv(1)
        try:
            ends.append(connection.recv(1))
        except ConnectionResetError:
            ends.append("reset")
        told.set()

    port = serve(note_the_end)
    agent = start()
    streams = [agent.open(number, port) for number in range(1, 101)]
    for stream in streams:
        agent.upload(stream, b"x")
    agent.wait(lambda: all(stream.opened == 0 for stream in streams), "openings")
    assert agent.process.stdin
    agent.process.stdin.close()
    began = time.monotonic()
    assert agent.process.wait(10) == 0
    took_s = time.monotonic() - began
    agent.wait(lambda: agent.bye is not None, "farewell")
    assert agent.bye and agent.bye.reason == "stdin ended"
    # 100 ms is what the protocol promises; the sanitizers' own end takes longer than that.
    assert took_s < (0.1 if "asan" not in str(agent.process.args) else 5)
    assert told.wait(10)
    assert ends[0] == "reset", "what a server got of a cut connection must not look whole"


def test_end_of_stdin_ends_the_agent_while_its_stdout_is_not_read(start: StartAgent, serve: Callable[..., int]) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 16))

    port = serve(flood)
    agent = start()
    streams = [agent.open(number, port) for number in range(1, 9)]
    agent.wait(lambda: all(stream.received for stream in streams), "first bytes")
    agent.write_out()
    wait_until(lambda: stuck(agent), "a full stdout")
    assert agent.process.stdin
    agent.process.stdin.close()
    assert agent.process.wait(5) == 0


def stuck(agent: AgentClient) -> bool:
    """Whether the agent's stdout takes no more."""
    writer = os.open(f"/proc/{agent.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


def test_silence_of_the_host_ends_the_agent(start: StartAgent) -> None:
    agent = start("--silence-ms", "300")
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        agent.send(decoder.encode_ping(b"not yet!"))
        count = len(agent.pongs)
        agent.wait(lambda count=count: len(agent.pongs) > count, "pong")  # type: ignore[misc]
    assert agent.until_end() == 4
    assert agent.bye and agent.bye.reason == "silence"


def test_a_pause_is_not_silence(start: StartAgent) -> None:
    """A paused container's clock goes on; what the host said meanwhile waits in the pipe."""
    agent = start("--silence-ms", "500")
    agent.process.send_signal(signal.SIGSTOP)
    agent.send(decoder.encode_ping(b"anybody?"))
    agent.write_out()
    threading.Event().wait(0.8)
    agent.process.send_signal(signal.SIGCONT)
    agent.wait(lambda: bool(agent.pongs), "pong")


def test_closed_stdout_ends_the_agent(start: StartAgent) -> None:
    agent = start()
    assert agent.process.stdout
    agent.process.stdout.close()
    assert agent.process.wait(10) == 0


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (agent_wire.encode_opened(1, 0), "frame type"),
        (decoder.encode_data_header(0, 1) + b"x", "stream number"),
        (decoder.encode_credit(1, 0), "credit"),
    ],
)
def test_malformed_frames_end_the_agent(start: StartAgent, frame: bytes, word: str) -> None:
    agent = start()
    agent.send(frame)
    assert agent.until_end() == 3
    assert agent.bye and agent.bye.reason == "protocol error" and word in agent.bye.text


def test_pings_are_answered(start: StartAgent) -> None:
    agent = start()
    agent.send(decoder.encode_ping(b"12345678") + decoder.encode_ping(b"abcdefgh"))
    agent.wait(lambda: agent.pongs == [b"12345678", b"abcdefgh"], "pongs")


# TCP.


def test_address_after_a_refused_one_is_dialled(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    refused = agent.open(1, free_port(), LOOPBACK, "::1")
    agent.wait(lambda: refused.refused is not None, "refusal")
    assert refused.refused == ECONNREFUSED
    second = agent.open(2, serve(echo, "::1"), LOOPBACK, "::1")
    agent.upload(second, b"hello")
    agent.wait(lambda: second.received == b"hello", "echo")
    assert second.opened == 1


def test_an_open_of_an_open_stream_is_an_error(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    port = serve(echo)
    agent.open(1, port)
    agent.open(1, port)
    assert agent.until_end() == 3


def test_late_answer_after_half_close(start: StartAgent, serve: Callable[..., int]) -> None:
    def answer_late(connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := connection.recv(1 << 16):
            digest.update(data)
        threading.Event().wait(0.3)
        connection.sendall(digest.digest())

    agent = start()
    stream = agent.open(1, serve(answer_late))
    payload = random.randbytes(MEBIBYTE)
    agent.upload(stream, payload)
    agent.wait(lambda: not stream.outgoing, "upload")
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: stream.eof, "end")
    assert stream.received == hashlib.sha256(payload).digest()


def test_server_that_closes_first(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    before = descriptors(agent)
    stream = agent.open(1, serve(lambda connection: connection.sendall(b"bye")))
    agent.wait(lambda: stream.eof, "end")
    assert stream.received == b"bye"
    agent.send(decoder.encode_eof(1) + decoder.encode_ping(b"crossing"))
    agent.wait(lambda: bool(agent.pongs), "pong")
    assert descriptors(agent) == before


def test_reset_by_the_server_comes_after_its_bytes(start: StartAgent, serve: Callable[..., int]) -> None:
    def reset(connection: socket.socket) -> None:
        connection.sendall(b"last words")
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    agent = start()
    stream = agent.open(1, serve(reset))
    agent.wait(lambda: stream.received == b"last words", "words")
    agent.upload(stream, b"x")
    agent.wait(lambda: stream.over, "end")
    assert stream.reset == ECONNRESET and not stream.eof


def test_reset_by_the_server_is_told_without_credit(start: StartAgent, serve: Callable[..., int]) -> None:
    all_read = threading.Event()

    def reset(connection: socket.socket) -> None:
        connection.sendall(bytes(WINDOW))
        assert all_read.wait(30)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    agent = start()
    stream = agent.open(1, serve(reset))
    stream.frozen = True
    agent.wait(lambda: len(stream.received) == WINDOW, "a window")
    all_read.set()
    agent.wait(lambda: stream.over, "end")
    assert stream.reset == ECONNRESET


def test_reset_by_the_host_reaches_the_server(start: StartAgent, serve: Callable[..., int]) -> None:
    seen: list[str] = []
    done = threading.Event()

    def expect_reset(connection: socket.socket) -> None:
        connection.sendall(b"ready")
        try:
            seen.append(repr(connection.recv(1)))
        except ConnectionResetError:
            seen.append("reset")
        done.set()

    agent = start()
    before = descriptors(agent)
    stream = agent.open(1, serve(expect_reset))
    agent.wait(lambda: stream.received == b"ready", "greeting")
    agent.send(decoder.encode_reset(1) + decoder.encode_data(1, b"crossing") + decoder.encode_ping(b"01234567"))
    agent.wait(lambda: bool(agent.pongs), "pong")
    assert done.wait(10) and seen == ["reset"]
    assert descriptors(agent) == before


@pytest.mark.parametrize("one_way", [True, False], ids=["one way", "both ways"])
def test_bulk_is_whole_each_way(start: StartAgent, serve: Callable[..., int], one_way: bool) -> None:
    """64 MiB through an echo (both ways at once), or hashed by the server and then sent by it."""
    size = 64 * MEBIBYTE
    payload = random.randbytes(MEBIBYTE) * (size // MEBIBYTE)

    def hash_then_send(connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := connection.recv(1 << 18):
            digest.update(data)
        connection.sendall(digest.digest() + payload)

    agent = start()
    stream = agent.open(1, serve(hash_then_send if one_way else echo))
    agent.upload(stream, payload)
    agent.wait(lambda: not stream.outgoing, "upload", 90)
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: stream.eof, "end", 90)
    if one_way:
        assert stream.received[:32] == hashlib.sha256(payload).digest()
        del stream.received[:32]
    assert len(stream.received) == size and hashlib.sha256(stream.received).digest() == hashlib.sha256(payload).digest()


def test_a_thousand_streams_echo(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    before = descriptors(agent)
    port = serve(echo)
    streams = [agent.open(number, port) for number in range(1, 1001)]
    for stream in streams:
        agent.upload(stream, f"stream {stream.number}".encode() * 100)
        agent.send(decoder.encode_eof(stream.number))
    agent.wait(lambda: all(stream.eof for stream in streams), "echoes", 60)
    for stream in streams:
        assert stream.received == f"stream {stream.number}".encode() * 100
    assert descriptors(agent) == before


def test_a_stalled_reader_and_a_bulk_transfer_do_not_hold_up_others(
    start: StartAgent, serve: Callable[..., int]
) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 16))

    agent = start()
    flood_port, echo_port = serve(flood), serve(echo)

    stalled = agent.open(101, flood_port)
    stalled.frozen = True
    bulk = agent.open(102, flood_port)
    agent.wait(lambda: len(stalled.received) == WINDOW and len(bulk.received) > MEBIBYTE, "both")
    overtook = []
    for number in range(103, 203):
        stream = agent.open(number, echo_port)
        bulk.received.clear()
        agent.upload(stream, b"x")
        agent.wait(lambda stream=stream: bool(stream.received), "first byte")
        overtook.append(len(bulk.received))
    assert sum(overtook) > MEBIBYTE, "the bulk transfer goes on meanwhile"
    # Its turn comes after some MiB of the others' at most, not after all of them.
    assert statistics.quantiles(overtook, n=20)[-1] < 4 * MEBIBYTE
    assert len(stalled.received) == WINDOW, "no more than its credit"
    agent.thaw(stalled)
    agent.wait(lambda: len(stalled.received) > 2 * WINDOW, "the stalled one going on")


def test_a_server_that_does_not_read_gives_no_credit(start: StartAgent, serve: Callable[..., int]) -> None:
    let_go = threading.Event()
    digest = hashlib.sha256()
    done = threading.Event()

    def read_late(connection: socket.socket) -> None:
        assert let_go.wait(30)
        while data := connection.recv(1 << 16):
            digest.update(data)
        done.set()

    agent = start()
    stream = agent.open(1, serve(read_late))
    payload = random.randbytes(16 * MEBIBYTE)
    agent.upload(stream, payload)
    agent.wait(lambda: stream.opened is not None and not agent.pending and stream.credit == 0, "a stall")
    agent.send(decoder.encode_ping(b"still up"))
    agent.wait(lambda: bool(agent.pongs), "pong")
    assert stream.outgoing
    let_go.set()
    agent.wait(lambda: not stream.outgoing, "upload")
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: not agent.pending, "the last bytes")
    assert done.wait(30) and digest.digest() == hashlib.sha256(payload).digest()


def test_data_beyond_the_credit_ends_the_agent(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    agent.open(1, serve(lambda connection: threading.Event().wait(20) and None))
    for _ in range(WINDOW // 32_768 * 400):
        agent.send(decoder.encode_data(1, bytes(32_768)))
        if len(agent.pending) > 128 * MEBIBYTE:
            break
    assert agent.until_end() == 3
    assert agent.bye and "credit" in agent.bye.text


def test_answers_are_kept_while_the_host_does_not_read(start: StartAgent, serve: Callable[..., int]) -> None:
    agent = start()
    payload = random.randbytes(200_000)

    def send_all(connection: socket.socket) -> None:
        connection.sendall(payload)

    port = serve(send_all)
    streams = [agent.open(number, port) for number in range(1, 31)]
    agent.send(decoder.encode_watch(50) + decoder.encode_ping(b"in there"))
    agent.write_out()
    wait_until(lambda: stuck(agent), "a full stdout")
    threading.Event().wait(0.5)  # several polls of the watch
    agent.wait(lambda: all(stream.eof for stream in streams) and bool(agent.snapshots), "all")
    for stream in streams:
        assert stream.received == payload
    assert agent.pongs == [b"in there"]


def test_hang_up_without_credit_loses_no_byte_and_burns_no_cpu(start: StartAgent, serve: Callable[..., int]) -> None:
    payload = random.randbytes(WINDOW + 100_000)

    def send_and_close(connection: socket.socket) -> None:
        connection.sendall(payload)

    agent = start()
    stream = agent.open(1, serve(send_and_close))
    stream.frozen = True
    agent.send(decoder.encode_eof(1))
    agent.wait(lambda: len(stream.received) == WINDOW, "a window")
    before = cpu_s(agent)
    threading.Event().wait(0.5)
    assert cpu_s(agent) - before < 0.2
    agent.thaw(stream)
    agent.wait(lambda: stream.eof, "end")
    assert stream.received == payload


def test_streams_beyond_the_limit_are_refused(start: StartAgent) -> None:
    """The dials hang at a listener whose queue is full, so that they stay open."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        agent = start()
        streams = [agent.open(number, port) for number in range(1, 4200)]
        agent.wait(lambda: streams[-1].refused is not None, "refusal")
        assert streams[-1].refused == 24
        agent.send(
            b"".join(decoder.encode_reset(stream.number) for stream in streams) + decoder.encode_ping(b"all gone")
        )
        agent.wait(lambda: bool(agent.pongs), "pong")
        assert descriptors(agent) < 10


def test_the_host_may_go_at_any_byte(binary: Path, serve: Callable[..., int]) -> None:
    """Whatever the host had got to say when it went: the agent ends, by itself and in order."""
    port = serve(echo)
    script = decoder.encode_hello(WINDOW) + decoder.encode_watch(100, udp=True)
    script += (
        agent_wire.encode_open(1, "tcp", port, [LOOPBACK]) + decoder.encode_data(1, b"hello") + decoder.encode_eof(1)
    )
    script += agent_wire.encode_open(2, "udp", port, [LOOPBACK]) + decoder.encode_data(2, b"hello")
    script += (
        decoder.encode_credit(1, 5)
        + agent_wire.encode_open(3, "tcp", port, ["::1", LOOPBACK])
        + decoder.encode_reset(3)
    )
    for size in range(len(script) + 1):
        done = subprocess.run([binary], input=script[:size], capture_output=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (0, b""), f"after {size} bytes"


@pytest.mark.parametrize("seed", range(3))
def test_random_streams(start: StartAgent, serve: Callable[..., int], seed: int) -> None:
    """Many short lives at once, ended in every order by either side: the agent stands, and keeps nothing."""
    rng = random.Random(seed)

    def whim(connection: socket.socket) -> None:
        own = random.Random(connection.getpeername()[1] + seed)
        for _ in range(own.randrange(4)):
            connection.sendall(bytes(own.randrange(1, 1 << 18)))
            if own.random() < 0.5:
                connection.recv(1 << 16)
        if own.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif own.random() < 0.3:
            connection.shutdown(socket.SHUT_WR)
            echo(connection)

    agent = start()
    before = descriptors(agent)
    ports = [serve(whim), serve(whim), serve(echo), free_port()]
    ended: set[int] = set()
    for number in range(1, 301):
        stream = agent.open(number, rng.choice(ports), *rng.sample([LOOPBACK, "::1", "nowhere.invalid"], 1), LOOPBACK)
        stream.frozen = rng.random() < 0.2
        for other in rng.sample(range(1, number + 1), min(number, 4)):
            stream = agent.streams[other]
            if other in ended or stream.refused is not None:
                continue
            choice = rng.random()
            if choice < 0.5:
                agent.upload(stream, bytes(rng.randrange(1, 1 << 18)))
            elif choice < 0.7 and not stream.outgoing:
                agent.send(decoder.encode_eof(other))
                ended.add(other)
            elif choice < 0.8:
                stream.outgoing.clear()
                agent.send(decoder.encode_reset(other))
                ended.add(other)
            else:
                agent.thaw(stream) if stream.owed else None
        count = len(agent.pongs)
        agent.send(decoder.encode_ping(b"and then"))
        agent.wait(lambda count=count: len(agent.pongs) > count, "pong")  # type: ignore[misc]
    for stream in agent.streams.values():
        stream.outgoing.clear()
        agent.send(decoder.encode_reset(stream.number))
    agent.send(decoder.encode_ping(b"the end."))
    agent.wait(lambda: agent.pongs[-1] == b"the end.", "pong")
    assert descriptors(agent) == before

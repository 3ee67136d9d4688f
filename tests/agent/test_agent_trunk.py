"""The trunk of the agent as a local child: what it carries, what ends it, and that it takes nothing else with it. Twice:
plain, and with the sanitizers."""

from __future__ import annotations

import random
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import Listening
from tests.support.agent_client import TIMEOUT_S, WINDOW, Stream, descriptors, echo, wait_until
from tests.support.direct_far import (
    LINGER_0,
    LOOPBACK,
    Far,
    NewFar,
    Serve,
    Server,
    closed_silently,
    idle_cpu_s,
    in_thread,
    proof,
    read_all,
)
from tests.support.local_fixtures import StartAgent
from tests.support.trunk_far import Trunk, announce, connect, wait_stdin_taken

pytestmark = pytest.mark.local

MEBIBYTE = 1 << 20
ECONNRESET, ECONNREFUSED = 104, 111
MARK = bytes(range(256))


def is_echoed(far: Far, stream: Stream, words: bytes = b"still there") -> None:
    """On the exec stream."""
    before = len(stream.received)
    far.agent.upload(stream, words)
    far.agent.wait(lambda: len(stream.received) == before + len(words), "echo on the exec stream")
    assert stream.received[before:] == words


def settles_at(far: Far, count: int) -> None:
    """So many descriptors has the agent in the end, and it answers."""

    def does() -> bool:
        far.agent.settle()
        return descriptors(far.agent) == count

    wait_until(does, f"return to {count} descriptors")


# What it carries.


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_streams_of_both_paths_side_by_side(far: NewFar, serve: Serve, address: str) -> None:
    direct = far(address)
    agent, trunk, port = direct.agent, connect(direct), serve(echo)
    payloads = [random.randbytes(MEBIBYTE + number) for number in range(8)]
    streams = [(agent, trunk)[number % 2].open(number + 1, port) for number in range(8)]
    for number, stream in enumerate(streams):
        (agent, trunk)[number % 2].upload(stream, payloads[number])
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(
                path.wait,
                lambda at=at: all(len(streams[i].received) == len(payloads[i]) for i in range(at, 8, 2)),  # type: ignore[misc]
                f"echo on {path}",
            )
            for at, path in enumerate((agent, trunk))
        ]:
            done.result(60)
    assert [stream.opened for stream in streams] == [0] * 8
    assert [bytes(stream.received) for stream in streams] == payloads


def test_both_ends_of_a_stream(far: NewFar, serve: Serve) -> None:
    """The host's end first and the answer late; the server's first and the host goes on."""
    direct = far()
    trunk, server = connect(direct), Server()
    before = descriptors(direct.agent)
    stream = trunk.open(1, serve(server))
    trunk.upload(stream, b"request")
    trunk.send(decoder.encode_eof(1))
    trunk.settle()
    assert server.ended.wait(TIMEOUT_S) and (server.saw, server.received) == ("end", b"request")
    assert not stream.over
    server.go.set()
    trunk.wait(lambda: stream.eof, "end")
    assert stream.received == b"late answer"

    def close_first(connection: socket.socket) -> None:
        connection.sendall(b"all I have to say")
        connection.shutdown(socket.SHUT_WR)

    closing = Server(close_first)
    stream = trunk.open(2, serve(closing))
    trunk.wait(lambda: stream.eof, "the server's end")
    assert stream.received == b"all I have to say"
    payload = random.randbytes(MEBIBYTE)
    trunk.upload(stream, payload)
    trunk.wait(lambda: not stream.outgoing, "all of it to be sent")
    trunk.send(decoder.encode_eof(2))
    trunk.settle()
    assert closing.ended.wait(TIMEOUT_S) and closing.saw == "end" and closing.received == payload
    closing.go.set()
    settles_at(direct, before)


def test_refused_and_reset_servers(far: NewFar, serve: Serve) -> None:
    def break_off(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)

    direct = far()
    trunk = connect(direct)
    with socket.socket() as nobody:
        nobody.bind((LOOPBACK, 0))
        refused = trunk.open(1, nobody.getsockname()[1])
        trunk.wait(lambda: refused.over, "refusal")
    assert refused.refused == ECONNREFUSED
    broken = trunk.open(2, serve(break_off))
    trunk.upload(broken, b"x")
    trunk.wait(lambda: broken.over, "reset")
    assert broken.reset == ECONNRESET
    name = trunk.open(3, serve(echo), "localhost")
    trunk.upload(name, b"by name")
    trunk.wait(lambda: name.received == b"by name", "echo")


def udp_server() -> socket.socket:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MEBIBYTE)
    server.settimeout(TIMEOUT_S)
    server.bind((LOOPBACK, 0))
    return server


def test_datagrams_keep_their_edges(far: NewFar) -> None:
    direct = far()
    trunk = connect(direct)
    sizes = [0, 1, 1400, 65_507]
    with udp_server() as server:
        stream = trunk.open(1, server.getsockname()[1], udp=True)
        for size in sizes:
            trunk.send(decoder.encode_data(1, bytes(size)))
            trunk.settle()
            got, address = server.recvfrom(70_000)
            assert len(got) == size
            server.sendto(got, address)
            trunk.wait(lambda size=size: len(stream.datagrams) == sizes.index(size) + 1, "datagram")  # type: ignore[misc]
    assert [len(one) for one in stream.datagrams] == sizes


def test_datagrams_that_come_in_parts_on_both_paths_do_not_mix(far: NewFar) -> None:
    """They were put together in one place: the wrong bytes to the wrong server, and some past its end."""
    direct = far()
    agent, trunk = direct.agent, connect(direct)
    over_exec, over_trunk = (random.randbytes(65_507) for _ in range(2))
    with udp_server() as first, udp_server() as second:
        agent.open(1, first.getsockname()[1], udp=True)
        trunk.open(2, second.getsockname()[1], udp=True)
        agent.send(decoder.encode_data(1, over_exec)[:60_000])
        wait_stdin_taken(direct)
        trunk.send(decoder.encode_data(2, over_trunk)[:1000])
        trunk.wait_taken()
        agent.send(decoder.encode_data(1, over_exec)[60_000:])
        agent.settle()
        trunk.send(decoder.encode_data(2, over_trunk)[1000:])
        trunk.settle()
        assert first.recv(70_000) == over_exec
        assert second.recv(70_000) == over_trunk


def test_bulk_moves_to_a_connection_of_its_own_and_is_whole(far: NewFar, serve: Serve) -> None:
    direct = far()
    trunk = connect(direct)
    before = descriptors(direct.agent)
    stream = trunk.open(1, serve(echo))
    payload = random.randbytes(8 * MEBIBYTE)
    trunk.upload(stream, payload[:MEBIBYTE])
    connection = trunk.move(stream)
    sender = in_thread(lambda: (connection.sendall(payload[MEBIBYTE:]), connection.shutdown(socket.SHUT_WR)))  # type: ignore[func-returns-value]
    trunk.send(decoder.encode_eof(1))
    trunk.settle()
    rest = read_all(connection)
    sender.join(TIMEOUT_S)
    trunk.wait(lambda: stream.eof, "end")
    assert bytes(stream.received) + rest == payload
    settles_at(direct, before)


def test_frames_for_a_stream_of_the_other_path_are_ignored(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent, trunk, port = direct.agent, connect(direct), serve(echo)
    mine, other = agent.open(1, port), trunk.open(2, port)
    agent.wait(lambda: mine.opened == 0, "opening")
    trunk.wait(lambda: other.opened == 0, "opening")
    for path, number in ((trunk, 1), (agent, 2)):
        path.send(decoder.encode_data(number, b"nobody's") + decoder.encode_credit(number, 0x7FFF_FFFF))
        path.send(decoder.encode_move(number) + decoder.encode_eof(number) + decoder.encode_reset(number))
        path.settle()
    is_echoed(direct, mine)
    trunk.upload(other, b"here too")
    trunk.wait(lambda: other.received == b"here too", "echo")


# Who gets one.


def test_trunk_before_listen(start: StartAgent) -> None:
    agent = start()
    agent.send(decoder.encode_trunk(bytes(16)))
    assert agent.until_end() == 3
    assert agent.bye and "trunk before listen" in agent.bye.text


def test_trunk_without_proof_hears_nothing_and_a_token_is_good_once(far: NewFar, serve: Serve) -> None:
    direct = far()
    token = announce(direct)
    assert closed_silently(direct.dial(direct.greeting(token, bytes(16))))
    assert closed_silently(direct.dial(direct.greeting(bytes(16))))
    greeting = direct.greeting(token)
    first = direct.dial(greeting)
    assert first.recv(100) == proof(direct.secret, b"agent", greeting[:32])
    trunk = Trunk(direct, first, token)
    for again in (greeting, direct.greeting(token)):
        assert closed_silently(direct.dial(again))
    stream = trunk.open(1, serve(echo))
    trunk.upload(stream, b"it is the first's")
    trunk.wait(lambda: stream.received == b"it is the first's", "echo")


def test_token_that_was_taken_back_opens_no_trunk(far: NewFar) -> None:
    direct = far()
    token = announce(direct)
    direct.agent.send(decoder.encode_trunk(b""))
    direct.agent.settle()
    assert closed_silently(direct.dial(direct.greeting(token)))


@pytest.mark.parametrize("how", ["another comes", "none any more"])
def test_trunk_that_the_host_gives_up_ends(far: NewFar, serve: Serve, how: str) -> None:
    direct = far()
    agent = direct.agent
    stays = agent.open(1, serve(echo))
    is_echoed(direct, stays)
    before = descriptors(agent)
    trunk, server = connect(direct), Server()
    stream = trunk.open(2, serve(server))
    trunk.upload(stream, b"half of it")
    trunk.settle()
    if how == "another comes":
        second = connect(direct)
        other = second.open(2, serve(echo))  # numbers begin anew
        second.upload(other, b"on the second")
        second.wait(lambda: other.received == b"on the second", "echo")
        second.send(decoder.encode_reset(2))
        second.settle()
        settles_at(direct, before + 1)
    else:
        agent.send(decoder.encode_trunk(b""))
        settles_at(direct, before)
    trunk.until_over()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    is_echoed(direct, stays)


# What ends it.

BAD = {
    "a wrong tag": lambda trunk, payload: decoder.encode_signed_open(8, bytes(16), payload),
    "signed with the secret itself": lambda trunk, payload: decoder.encode_signed_open(
        8, proof(trunk.far.secret, b"", (8).to_bytes(4, "big") + payload)[:16], payload
    ),
    "another port than the one signed": lambda trunk, payload: decoder.encode_signed_open(
        8, trunk.tag(8, payload[:1] + b"\0\1" + payload[3:]), payload
    ),
    "another number than the one signed": lambda trunk, payload: decoder.encode_signed_open(
        8, trunk.tag(9, payload), payload
    ),
    "the same once more": lambda trunk, payload: trunk.opening(7, payload),
    "a number that is not larger": lambda trunk, payload: trunk.opening(6, payload),
    "OPEN": lambda trunk, payload: decoder.encode_open_payload(8, payload),
    "what is the exec stream's": lambda trunk, payload: decoder.encode_watch(100),
    "a hello": lambda trunk, payload: decoder.encode_hello(WINDOW),
    "other words": lambda trunk, payload: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "more credit than there can be": lambda trunk, payload: decoder.encode_credit(7, 0x7FFF_FFFF),
    "MOVE without a connection": lambda trunk, payload: decoder.encode_move(7),
}


@pytest.mark.parametrize("what", BAD)
def test_violation_on_the_trunk_ends_its_streams_alone(far: NewFar, serve: Serve, what: str) -> None:
    direct = far()
    agent = direct.agent
    stays = agent.open(1, serve(echo))
    is_echoed(direct, stays)
    before = descriptors(agent)
    trunk, server = connect(direct), Server()
    stream = trunk.open(7, serve(server))
    trunk.wait(lambda: stream.opened == 0, "opening")
    with socket.create_server((LOOPBACK, 0)) as victim:
        victim.setblocking(False)
        trunk.send(BAD[what](trunk, decoder.open_payload("tcp", victim.getsockname()[1], [LOOPBACK])))
        trunk.until_over()
        assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
        settles_at(direct, before)
        with pytest.raises(BlockingIOError):
            victim.accept()
    is_echoed(direct, stays)
    third = connect(direct)  # the agent takes another: it is the host who decides whether there is one
    third.settle()


@pytest.mark.parametrize("how", ["FIN", "RST", "half"])
def test_hosts_end_of_the_trunk_resets_its_servers_and_nothing_else(far: NewFar, serve: Serve, how: str) -> None:
    """A FIN is no end of a request either: it is what a killed supervisor's socket says."""
    direct = far()
    agent = direct.agent
    stays = agent.open(1, serve(echo))
    is_echoed(direct, stays)
    before = descriptors(agent)
    trunk, server = connect(direct), Server()
    stream = trunk.open(2, serve(server))
    trunk.upload(stream, b"half of it")
    trunk.settle()
    if how == "half":
        trunk.sock.shutdown(socket.SHUT_WR)
        trunk.until_over()
    else:
        trunk.close() if how == "FIN" else trunk.reset()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    settles_at(direct, before)
    is_echoed(direct, stays)


def test_end_of_stdin_ends_the_trunk_too(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    trunk, server = connect(direct), Server()
    stream = trunk.open(1, serve(server))
    trunk.upload(stream, b"half of it")
    trunk.settle()
    assert agent.process.stdin
    agent.process.stdin.close()
    assert server.ended.wait(TIMEOUT_S) and server.saw == "reset"
    trunk.until_over()
    assert agent.process.wait(TIMEOUT_S) == 0


def test_trunk_cut_at_each_edge_of_a_conversation_and_between(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent, port = direct.agent, serve(echo)
    stays = agent.open(1, port)
    is_echoed(direct, stays)
    before = descriptors(agent)
    with udp_server() as udp:
        tcp_payload = decoder.open_payload("tcp", port, [LOOPBACK])
        udp_payload = decoder.open_payload("udp", udp.getsockname()[1], [LOOPBACK])
        count = cut = 0
        while cut <= count:
            for partly in (False, True):
                trunk = connect(direct)
                said = [
                    trunk.opening(2, tcp_payload),
                    decoder.encode_data(2, MARK),
                    trunk.opening(3, udp_payload),
                    decoder.encode_data(3, MARK),
                    decoder.encode_ping(b"12345678"),
                    trunk.opening(4, decoder.open_payload("tcp", port, ["localhost"])),
                    decoder.encode_credit(2, 1000),
                    decoder.encode_eof(3),
                    decoder.encode_reset(4),
                    decoder.encode_eof(2),
                ]
                count = len(said)
                trunk.sock.sendall(b"".join(said[:cut]) + (said[cut][:11] if partly and cut < count else b""))
                (trunk.reset if cut % 2 else trunk.close)()
            cut += 1
    settles_at(direct, before)
    is_echoed(direct, stays)
    assert agent.listening == [Listening(direct.port, 0)], "none of these counts as a bad attempt"


# One that is not read, and one where nothing happens.


def fill(far: Far, serve: Serve) -> tuple[Trunk, list[Stream]]:
    """A trunk on which more has been asked for than there is room for on the way."""
    payload = MARK * (WINDOW // len(MARK))
    trunk = connect(far, receive_bytes=16 * 1024)
    port = serve(lambda connection: (connection.sendall(payload), connection.recv(1)))
    streams = [trunk.open(number, port) for number in range(1, 65)]  # 16 MiB
    trunk.write_out()
    wait_until(lambda: trunk.queued() > 0, "trunk that begins to fill")
    size = -1
    while size != (size := trunk.queued()):  # until the agent gives no more to its kernel
        far.agent.settle()
        idle_cpu_s(far.agent)
    return trunk, streams


def test_trunk_that_is_not_read_loses_nothing_and_costs_nothing(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    trunk, streams = fill(direct, serve)
    assert idle_cpu_s(agent) < 0.2
    waiting = agent.open(100, serve(echo))
    agent.upload(waiting, b"comes once there is room")
    agent.settle()
    trunk.wait(lambda: all(len(stream.received) == WINDOW for stream in streams), "all of it")
    assert all(stream.received == MARK * (WINDOW // len(MARK)) for stream in streams)
    agent.wait(lambda: waiting.received == b"comes once there is room", "echo")


def test_trunk_that_is_not_read_can_be_given_up(far: NewFar, serve: Serve) -> None:
    direct = far()
    agent = direct.agent
    before = descriptors(agent)
    fill(direct, serve)
    agent.send(decoder.encode_trunk(b""))
    settles_at(direct, before)
    is_echoed(direct, agent.open(100, serve(echo)))


def test_trunk_that_breaks_while_it_is_full_of_answers(far: NewFar, serve: Serve) -> None:
    """More questions wait than there is room for answers to: they were read all the same, and the agent ended itself."""
    direct = far()
    before = descriptors(direct.agent)
    trunk = connect(direct, receive_bytes=16 * 1024)
    trunk.writer.settimeout(1)
    pings = decoder.encode_ping(b"question") * 4096
    with pytest.raises(TimeoutError):
        while True:
            trunk.writer.sendall(pings)
    assert idle_cpu_s(direct.agent) < 0.2
    trunk.reset()
    settles_at(direct, before)
    is_echoed(direct, direct.agent.open(1, serve(echo)))


def test_idle_trunk_costs_no_cpu(far: NewFar, serve: Serve) -> None:
    direct = far()
    trunk = connect(direct)
    stream = trunk.open(1, serve(echo))
    trunk.upload(stream, b"x")
    trunk.wait(lambda: stream.received == b"x", "echo")
    assert idle_cpu_s(direct.agent) < 0.2
    trunk.send(struct.pack(">BBHI", 4, 0, 5, 1) + b"ha")  # half a frame
    trunk.wait_taken()
    assert idle_cpu_s(direct.agent) < 0.2

"""The direct path from end to end without an engine: our data plane, a real agent as a child, servers on loopback.

What went over the exec stream is counted, so that each test sees whether the bulk of it has moved: the first connection
is always opened there.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol import frames
from autoforward.dataplane import splice
from autoforward.dataplane.messages import MuxCheck, MuxLost
from autoforward.dataplane.mux import handshake as direct_module
from autoforward.dataplane.mux.handshake import PROOF_BYTES
from tests.support import agent_wire
from tests.support.agent_build import build
from tests.support.direct_rig import (
    SESSION,
    Direct,
    PlayedAgent,
    descriptors,
    digest,
    eventually,
    exactly,
    in_thread,
    moved_pair,
    pattern,
    pipes,
)
from tests.support.plane_rig import TIMEOUT_S, read_all, reset, rig

pytestmark = pytest.mark.local

MOST_ON_THE_MUX = 24 << 20
"""More than what goes over the mux until a stream has moved on a machine that is busy; a fraction of SIZE."""

SIZE = 96 << 20


@pytest.fixture(scope="module", params=["agent", "agent-asan", "agent-copies-asan"])
def binary(request: pytest.FixtureRequest) -> Path:
    """The last one moves bytes without pipes; the host's side does so too then."""
    return build(request.param)


@pytest.fixture
def direct(binary: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Direct]:
    if "copies" in binary.name:
        monkeypatch.setattr(splice, "LEAST_PIPE_BYTES", 1 << 30)
    with rig() as one:
        path = Direct(one, binary)
        yield path
        path.close()


def test_a_download_leaves_the_mux_and_is_whole(direct: Direct) -> None:
    client, served = direct.pair()
    data = pattern(SIZE)
    thread = in_thread(lambda: (served.sendall(data), served.close()))  # type: ignore[func-returns-value]
    got = read_all(client)
    thread.join(TIMEOUT_S)
    assert digest(got) == digest(data)
    assert direct.stream.heard < MOST_ON_THE_MUX
    client.close()
    eventually(lambda: direct.rig.counters().active == 0, "the relay's end")
    assert direct.rig.counters().bytes_out == len(data)


def test_an_upload_leaves_the_mux_and_is_whole(direct: Direct) -> None:
    client, served = direct.pair()
    data = pattern(SIZE)
    thread = in_thread(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))  # type: ignore[func-returns-value]
    got = read_all(served)
    thread.join(TIMEOUT_S)
    assert digest(got) == digest(data)
    assert direct.stream.said < MOST_ON_THE_MUX
    served.sendall(b"thanks")
    served.close()
    assert read_all(client) == b"thanks"
    eventually(lambda: direct.rig.counters().active == 0, "the relay's end")
    assert direct.rig.counters().bytes_in == len(data)


def test_both_ways_at_once_and_half_closed(direct: Direct) -> None:
    """The client ends first and still gets everything that comes after."""
    client, served = direct.pair()
    up, down = pattern(SIZE, 2), pattern(SIZE, 3)
    first, rest = down[: SIZE // 2], down[SIZE // 2 :]
    arrived: list[bytes] = []
    said = in_thread(lambda: (client.sendall(up), client.shutdown(socket.SHUT_WR)))  # type: ignore[func-returns-value]
    heard = in_thread(lambda: arrived.append(read_all(served)))

    def answer() -> None:
        served.sendall(first)
        heard.join(TIMEOUT_S)  # everything else is said after the client's end
        served.sendall(rest)
        served.close()

    answered = in_thread(answer)
    got = read_all(client)
    for thread in (said, heard, answered):
        thread.join(TIMEOUT_S)
    assert digest(arrived[0]) == digest(up)
    assert digest(got) == digest(down)
    eventually(lambda: direct.rig.counters().active == 0, "the relay's end")


def test_a_server_that_ends_first_still_hears_the_client(direct: Direct) -> None:
    client, served = direct.pair()
    data = pattern(SIZE // 2)
    in_thread(lambda: (served.sendall(data), served.shutdown(socket.SHUT_WR)))  # type: ignore[func-returns-value]
    assert digest(read_all(client)) == digest(data)
    thread = in_thread(lambda: (client.sendall(data), client.close()))  # type: ignore[func-returns-value]
    assert digest(read_all(served)) == digest(data)
    thread.join(TIMEOUT_S)
    assert direct.stream.heard < MOST_ON_THE_MUX and direct.stream.said < MOST_ON_THE_MUX
    eventually(lambda: direct.rig.counters().active == 0, "the relay's end")


def test_pipes_are_used_where_they_have_some_size(direct: Direct, binary: Path) -> None:
    before = pipes("self")
    moved_pair(direct)
    ends = 0 if "copies" in binary.name else 4
    assert (pipes(direct.agent.pid), pipes("self") - before) == (ends, ends)


def test_a_server_that_resets_resets_the_client_after_its_last_words(direct: Direct) -> None:
    client, served = moved_pair(direct)
    served.sendall(b"last words")
    assert exactly(client, 10) == b"last words"
    reset(served)
    with pytest.raises(ConnectionResetError):
        read_all(client)


def test_a_client_that_resets_resets_the_server_and_nothing_stays(direct: Direct) -> None:
    fds = direct.agent_fds()
    client, served = moved_pair(direct)
    assert direct.agent_fds() > fds + 2  # the server's connection, the direct one, its pipes, the listener, the trunk
    reset(client)
    with pytest.raises(ConnectionResetError):
        read_all(served)
    eventually(lambda: direct.rig.counters().active == 0, "the relay's end")
    eventually(lambda: direct.agent_fds() == fds + 2, "the agent keeps the listener and the trunk alone")


def test_a_killed_agent_is_no_end_of_an_answer(direct: Direct) -> None:
    """Its kernel sends a FIN on the direct connection: half a file must not look whole."""
    client, served = moved_pair(direct)
    served.sendall(b"half of")
    assert exactly(client, 7) == b"half of"
    direct.agent.send_signal(signal.SIGKILL)
    with pytest.raises(ConnectionResetError):
        read_all(client)
    direct.rig.expect(MuxLost)


def test_a_stalled_client_holds_up_nobody_and_loses_nothing(direct: Direct) -> None:
    client, served = moved_pair(direct)
    data = pattern(2 * SIZE)  # more than the buffers of three connections: each may grow to 32 MiB
    thread = in_thread(lambda: (served.sendall(data), served.close()))  # type: ignore[func-returns-value]
    with contextlib.suppress(TimeoutError):
        thread.join(0.5)
    assert thread.is_alive()  # the buffers between are full, and hold a fraction of it
    other, other_served = direct.pair()
    other.sendall(b"ping")
    assert exactly(other_served, 4) == b"ping"
    turns = direct.rig.turns_during(0.5)
    assert turns < 50, "the loop spins while a client does not read"
    assert digest(read_all(client)) == digest(data)
    thread.join(TIMEOUT_S)


def test_a_drain_waits_for_a_moved_stream(direct: Direct) -> None:
    client, served = moved_pair(direct)
    drained = direct.rig.drain(TIMEOUT_S)
    served.sendall(b"more")
    served.close()
    assert exactly(client, 4) == b"more"
    client.close()
    assert drained.result(TIMEOUT_S)


def test_a_drain_at_its_end_cuts_a_moved_stream(direct: Direct) -> None:
    client, served = moved_pair(direct)
    assert not direct.rig.drain(0.1).result(TIMEOUT_S)
    for end in (client, served):
        with pytest.raises(ConnectionResetError):
            read_all(end)


def test_more_streams_than_may_move_stay_on_the_mux_and_are_whole(direct: Direct) -> None:
    pairs = [direct.pair() for _ in range(70)]
    data = pattern(2 << 20)
    threads = [in_thread(lambda one=served: (one.sendall(data), one.close())) for _, served in pairs]  # type: ignore[misc]
    digests: list[str] = []
    readers = [in_thread(lambda one=client: digests.append(digest(read_all(one)))) for client, _ in pairs]  # type: ignore[misc]
    for thread in (*threads, *readers):
        thread.join(TIMEOUT_S)
    assert digests == [digest(data)] * 70


@pytest.mark.parametrize("address", [None, "192.0.2.1", "2001:db8::1"])
def test_mux_carries_everything_where_there_is_no_direct_path(binary: Path, address: str | None) -> None:
    """No address; one that is not the agent's own, on which it cannot listen."""
    with rig() as one:
        path = Direct(one, binary, address)
        client, served = path.pair()
        data = pattern(32 << 20)
        thread = in_thread(lambda: (served.sendall(data), served.close()))  # type: ignore[func-returns-value]
        assert digest(read_all(client)) == digest(data)
        assert path.stream.heard > len(data)
        thread.join(TIMEOUT_S)
        path.close()


@pytest.mark.timeout(300)
def test_drops_of_either_end_at_random_moments(direct: Direct) -> None:
    """Whatever moment it is, bulk, handshake or move: no descriptor stays, and what arrived is a beginning of what was sent."""
    seed = int(os.environ.get("AUTOFORWARD_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    data = pattern(8 << 20)
    moved_pair(direct)[0].close()
    eventually(lambda: direct.rig.counters().active == 0, "the first relay's end")
    fds, own = direct.agent_fds(), descriptors("self")
    for _ in range(60):
        client, served = direct.pair()
        sender, receiver = (client, served) if chance.random() < 0.5 else (served, client)
        until = chance.choice((64, 256, 257, 300, 512, 1024, 4096)) * 1024 + chance.randrange(4096)

        stop = threading.Event()

        def send(sock: socket.socket = sender, stop: threading.Event = stop) -> None:
            # Never blocked for long: a socket that a thread waits on does not close until the thread is through.
            sock.settimeout(0.05)
            view = memoryview(data)
            while view and not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    view = view[sock.send(view) :]

        thread = in_thread(send)
        got = b""
        with contextlib.suppress(OSError):
            while len(got) < until and (piece := receiver.recv(64 * 1024)):
                got += piece
        assert data.startswith(got)
        stop.set()
        thread.join(TIMEOUT_S)
        first, second = chance.choice(((sender, receiver), (receiver, sender)))
        if chance.random() < 0.5:
            reset(first)
        else:
            first.close()
        second.close()
    eventually(lambda: direct.rig.counters().active == 0, "the relays' ends")
    # What the first one had may not have been given back yet when these were counted.
    eventually(lambda: direct.agent_fds() <= fds, "the agent's descriptors")
    eventually(lambda: descriptors("self") <= own, "the host's descriptors")


# A stranger at the address, an agent that lies: the test plays both.


@pytest.mark.parametrize("answer", [bytes(PROOF_BYTES), b"HTTP/1.1 400 Bad Request\r\n\r\n....", b"short", b""])
def test_client_without_the_secret_gets_no_stream(answer: bytes) -> None:
    with rig() as one, socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(TIMEOUT_S)
        agent = PlayedAgent(one, "127.0.0.1")
        client = one.connect()
        secret = agent.expect(agent_wire.Listen).secret
        number = agent.expect(agent_wire.Open).stream
        agent.bulk(client, number)
        agent.sock.sendall(agent_wire.encode_listening(stranger.getsockname()[1]))
        tokens = [agent.announced(agent_wire.Trunk), agent.announced(agent_wire.Direct)]
        for token in tokens:
            far, _ = stranger.accept()
            far.settimeout(TIMEOUT_S)
            hello = exactly(far, 64)
            assert hello[:16] == token
            assert hello[32:] == hmac.digest(secret, b"autoforward direct host" + hello[:32], "sha256")
            assert secret not in hello
            far.sendall(answer)
            if len(answer) < PROOF_BYTES:
                far.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert read_all(far) == b""
            far.close()
        agent.sock.sendall(wire.encode_data(number, b"goes on") + wire.encode_eof(number))
        assert read_all(client) == b"goes on"
        client.sendall(b"and back")
        client.close()
        said = b""
        while not said.endswith(b"and back"):
            said += agent.expect(frames.Data).payload
        assert not agent.saw_move


def test_a_way_that_was_not_there_is_found_when_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The network was away for a moment, or somebody flooded the agent: that was for good once."""
    passed_s = 0.0
    monkeypatch.setattr(direct_module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s))
    caplog.set_level("INFO", "autoforward.dataplane.mux.handshake")
    with rig() as one:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
        agent = PlayedAgent(one, "127.0.0.1")
        client = one.connect()
        secret = agent.expect(agent_wire.Listen).secret
        number = agent.expect(agent_wire.Open).stream
        agent.sock.sendall(agent_wire.encode_listening(address[1]))
        agent.announced(agent_wire.Trunk)
        eventually(lambda: "no direct path" in caplog.text, "a refused connection")
        with socket.create_server(address) as back:
            back.settimeout(TIMEOUT_S)
            for rest_s in (0.0, direct_module.FIRST_REST_S):
                passed_s += rest_s
                agent.bulk(client, number)
                agent.expect(frames.Credit)
                if not rest_s:
                    agent.sock.sendall(wire.encode_ping(b"so far: "))
                    agent.expect(frames.Pong)
                    assert not any(isinstance(frame, agent_wire.Direct) for frame in agent.seen), (
                        "in the rest it is left alone"
                    )
            token = agent.announced(agent_wire.Direct)
            far, _ = back.accept()
            hello = exactly(far, 64)
            assert hello[:16] == token
            far.sendall(hmac.digest(secret, b"autoforward direct agent" + hello[:32], "sha256"))
            agent.expect(frames.Move)
            far.close()
        assert caplog.text.count("no direct path") == 1


@pytest.mark.parametrize("lie", [wire.encode_move(1), agent_wire.encode_listening(4000)], ids=["move", "listening"])
def test_agent_with_unrequested_frames_loses_its_session_alone(lie: bytes) -> None:
    with rig() as one:
        agent = PlayedAgent(one, None)
        client = one.connect()
        client.sendall(b"said")  # else it would wait for another agent
        assert agent.expect(frames.Data).stream == 1
        agent.sock.sendall(lie)
        assert one.expect(MuxLost).session_id == SESSION
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_data_on_the_mux_after_the_move_ends_the_session() -> None:
    with rig() as one, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        agent = PlayedAgent(one, "127.0.0.1")
        client = one.connect()
        secret = agent.expect(agent_wire.Listen).secret
        number = agent.expect(agent_wire.Open).stream
        agent.bulk(client, number)
        agent.sock.sendall(agent_wire.encode_listening(listener.getsockname()[1]))
        agent.announced(agent_wire.Trunk)
        agent.announced(agent_wire.Direct)
        listener.accept()[0].close()  # no trunk
        far, _ = listener.accept()
        hello = exactly(far, 64)
        far.sendall(hmac.digest(secret, b"autoforward direct agent" + hello[:32], "sha256"))
        agent.expect(frames.Move)
        agent.sock.sendall(wire.encode_move(number))
        far.sendall(b"directly")
        assert exactly(client, 8) == b"directly"
        agent.sock.sendall(wire.encode_data(number, b"late"))
        assert "credit" in one.expect(MuxLost).reason
        with pytest.raises(ConnectionResetError):
            read_all(client)
        far.close()


@pytest.mark.parametrize("answers", [True, False])
def test_after_a_sleep_of_the_machine_an_agent_that_says_nothing_is_lost_at_once(answers: bool) -> None:
    with rig() as one:
        agent = PlayedAgent(one, None)
        one.plane.submit(MuxCheck(1.0))
        ping = next_ping(agent)
        if answers:
            agent.sock.sendall(wire.encode_pong(ping))
            with pytest.raises(AssertionError, match="no MuxLost"):
                one.expect(MuxLost, 2.0)
        else:
            assert one.expect(MuxLost).reason == "the agent did not answer within 1 s"


def next_ping(agent: PlayedAgent) -> bytes:
    """The payload of the next ping, which is not answered."""
    while True:
        for frame in agent.decoder.feed(agent.sock.recv(1 << 16)):
            if isinstance(frame, frames.Ping):
                return frame.payload

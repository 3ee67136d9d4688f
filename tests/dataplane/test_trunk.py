"""The trunk from end to end without an engine: our data plane, a real agent as a child, and a relay between the two that
cuts, swallows and lies."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder, frames
from autoforward.agent_protocol.frames import Listening
from autoforward.core.model import DialAddress
from autoforward.dataplane.messages import MuxLost, MuxRetire, Route
from autoforward.dataplane.mux import exec_mux, trunk
from autoforward.dataplane.mux.exec_mux import Mux
from autoforward.dataplane.mux.handshake import DirectConnector
from autoforward.dataplane.mux.trunk import Trunk
from tests.support import agent_wire
from tests.support.direct_rig import (
    SESSION,
    Direct,
    descriptors,
    digest,
    eventually,
    exactly,
    in_thread,
    pattern,
    pipes,
)
from tests.support.plane_rig import FORWARD, TIMEOUT_S, read_all, reset, rig

pytestmark = pytest.mark.local

QUIET = 40_000
"""More bytes than the pings of a minute are; fewer than a thousand connections on the exec stream."""

Pair = tuple[socket.socket, socket.socket]


class Between:
    """Sits between the host and the agent's listener. `swallows`: what either says gets nowhere any more."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.target = 0
        self.swallows = False
        self.hosts: list[socket.socket] = []
        """The host's ends of the connections so far."""
        self._end = ""
        self._threads = [in_thread(self._accept)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.hosts.append(near)
                self._threads.append(in_thread(lambda near=near, far=far: self._pump(near, far)))  # type: ignore[misc]

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while not self._end:
                for source in select.select([near, far], [], [], 0.05)[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if not self.swallows:
                        (far if source is near else near).sendall(data)
            if self._end == "RST":
                reset(near)
                reset(far)

    def cut(self, how: str) -> None:
        """All connections so far; those that come after go through again."""
        self._end = how
        for thread in self._threads[1:]:
            thread.join(TIMEOUT_S)
        self._end = ""

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut("FIN")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new trunk is sought soon after the last one was lost."""
    monkeypatch.setattr(exec_mux, "PING_INTERVAL_S", 0.2)
    monkeypatch.setattr(trunk, "SEEK_AGAIN_S", 0.2)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """The way to the agent's listener leads over this one."""
    relay = Between()
    listening = DirectConnector.listening

    def elsewhere(gate: DirectConnector, said: Listening) -> None:
        relay.target = said.port
        listening(gate, said._replace(port=said.port and relay.listener.getsockname()[1]))

    monkeypatch.setattr(DirectConnector, "listening", elsewhere)
    yield relay
    relay.close()


def mux_of(direct: Direct) -> Mux:
    found = direct.rig.plane._muxes.get(SESSION)
    assert found is not None
    return found


def trunk_of(direct: Direct) -> Trunk | None:
    trunks = mux_of(direct)._trunks
    return trunks._trunk if trunks is not None else None


def bring_up(direct: Direct) -> Pair:
    """The first connection, which is on the exec stream; what comes after it is opened on a trunk."""
    first = direct.pair()
    eventually(lambda: trunk_of(direct) is not None, "a trunk")
    return first


def talk(pair: Pair, size: int = 1000) -> None:
    """Bytes there and back again."""
    for source, sink in (pair, pair[::-1]):
        data = random.randbytes(size)
        source.sendall(data)
        assert exactly(sink, size) == data


def is_cut(pair: Pair) -> None:
    for end in pair:
        with pytest.raises(ConnectionResetError):
            read_all(end)


# What it carries.


def test_a_thousand_connections_leave_the_exec_stream_alone(direct: Direct) -> None:
    first = bring_up(direct)
    heard, said = direct.stream.heard, direct.stream.said
    for _ in range(20):
        pairs = [direct.pair() for _ in range(50)]
        for pair in pairs:
            talk(pair, 100)
        for client, served in pairs:
            client.close()
            assert served.recv(1) == b""
            served.close()
    assert direct.stream.heard - heard < QUIET and direct.stream.said - said < QUIET
    talk(first)
    eventually(lambda: direct.rig.counters().active == 1, "the relays' ends")


def test_container_without_an_address_has_no_trunk(binary: Path) -> None:
    with rig() as one:
        path = Direct(one, binary, None)
        before = path.agent_fds()
        pairs = [path.pair() for _ in range(3)]
        for pair in pairs:
            talk(pair, 20_000)
        assert path.stream.heard > 60_000 and path.stream.said > 60_000
        assert path.agent_fds() == before + 3, "no listener, no trunk"
        path.close()


def test_half_close_on_the_trunk_both_ways(direct: Direct) -> None:
    bring_up(direct)
    client, served = direct.pair()
    data = pattern(4 << 20)
    thread = in_thread(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))  # type: ignore[func-returns-value]
    assert digest(read_all(served)) == digest(data)
    thread.join(TIMEOUT_S)
    thread = in_thread(lambda: (served.sendall(data), served.close()))  # type: ignore[func-returns-value]
    assert digest(read_all(client)) == digest(data)
    thread.join(TIMEOUT_S)
    client, served = direct.pair()
    served.sendall(b"all I have to say")
    served.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"all I have to say"
    client.sendall(b"and I")
    client.close()
    assert read_all(served) == b"and I"


def test_reset_on_the_trunk_arrives_as_a_reset(direct: Direct) -> None:
    bring_up(direct)
    for near, far in (direct.pair(), direct.pair()[::-1]):
        talk((near, far))
        reset(near)
        with pytest.raises(ConnectionResetError):
            read_all(far)


def test_bulk_moves_from_the_trunk_to_a_connection_of_its_own(direct: Direct) -> None:
    bring_up(direct)
    client, served = direct.pair()
    before = direct.agent_fds()
    piece = pattern(4 << 20)
    for count in range(64):
        thread = in_thread(lambda: served.sendall(piece))
        assert digest(exactly_large(client, len(piece))) == digest(piece), f"piece {count}"
        thread.join(TIMEOUT_S)
        if direct.agent_fds() > before:
            break
    eventually(lambda: direct.agent_fds() == before + 5, "the connection and its pipes")
    assert pipes(direct.agent.pid) == 4
    client.sendall(b"the other way")
    assert exactly(served, 13) == b"the other way"
    served.close()
    assert read_all(client) == b""
    client.close()
    eventually(lambda: direct.agent_fds() == before - 1, "the agent's descriptors")


def exactly_large(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size and (piece := sock.recv(min(size, 1 << 20))):
        parts.append(piece)
        size -= len(piece)
    return b"".join(parts)


def test_open_too_long_to_be_signed_goes_over_the_exec_stream(direct: Direct) -> None:
    bring_up(direct)
    port = direct.server.getsockname()[1]
    short = (DialAddress("127.0.0.1", port),)
    long = (*short, *(DialAddress(f"2001:db8::{n}", port) for n in range(1, 5)))
    for dials, size in ((long, 50_000), (short, 0)):
        direct.rig.plane.submit(Route(FORWARD, SESSION, "tcp", dials))
        direct.rig.counters()  # the route is taken by the time that this is answered
        heard, said = direct.stream.heard, direct.stream.said
        talk(direct.pair(), 50_000)
        for moved in (direct.stream.heard - heard, direct.stream.said - said):
            assert size <= moved < size + 10_000


def test_numbers_that_begin_anew_go_over_the_exec_stream(direct: Direct) -> None:
    first = bring_up(direct)
    mux_of(direct)._last_number = frames.MAX_STREAM - 2
    trunks = [direct.pair() for _ in range(2)]
    said = direct.stream.said
    anew = [direct.pair() for _ in range(3)]  # the first still has number 1
    for pair in (first, *trunks, *anew):
        talk(pair, 10_000)
    assert direct.stream.said - said > 40_000
    assert sorted(mux_of(direct)._channels) == [1, 2, 3, 4]


# What ends it.


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_trunk_that_is_cut_resets_its_connections_and_another_comes(direct: Direct, between: Between, how: str) -> None:
    """Half an answer must not look whole."""
    stays = bring_up(direct)
    before = trunk_of(direct)
    pairs = [direct.pair() for _ in range(5)]
    for pair in pairs:
        talk(pair)
        pair[1].sendall(b"half of")
        assert exactly(pair[0], 7) == b"half of"
    between.cut(how)
    for pair in pairs:
        is_cut(pair)
    talk(stays)
    talk(direct.pair())

    def is_another() -> bool:
        talk(direct.pair())
        return trunk_of(direct) not in (None, before)

    eventually(is_another, "another trunk")
    said = direct.stream.said
    talk(direct.pair(), 50_000)
    assert direct.stream.said - said < 10_000


def test_a_cut_in_the_middle_of_a_download_is_no_end_of_it(direct: Direct, between: Between) -> None:
    bring_up(direct)
    for _ in range(5):
        client, served = direct.pair()
        sender = in_thread(lambda served=served: pour(served))  # type: ignore[misc]
        assert len(exactly(client, 100_000)) == 100_000
        between.cut("FIN")
        with pytest.raises(ConnectionResetError):
            read_all(client)
        sender.join(TIMEOUT_S)
        assert not sender.is_alive(), "the server was not told"

        def is_there() -> bool:
            talk(direct.pair())
            return trunk_of(direct) is not None

        eventually(is_there, "another trunk")


def pour(sock: socket.socket) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while True:
            sock.sendall(bytes(1 << 16))


def test_trunk_that_leads_nowhere_is_found(direct: Direct, between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    stays = bring_up(direct)
    pair = direct.pair()
    talk(pair)
    between.swallows = True
    monkeypatch.setattr(trunk, "UNANSWERED_S", 0.2)
    monkeypatch.setattr(trunk, "GRACE_S", 0.2)
    pair[0].sendall(b"nobody gets this")
    is_cut(pair)
    talk(stays)
    talk(direct.pair())


def test_trunk_of_a_stopped_agent_is_kept(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused container: nothing comes on either path. And one where nothing is said at all stays, too."""
    monkeypatch.setattr(trunk, "UNANSWERED_S", 0.1)
    monkeypatch.setattr(trunk, "GRACE_S", 0.4)
    bring_up(direct)
    before, pair = trunk_of(direct), direct.pair()
    talk(pair)
    direct.rig.turns_during(0.5)
    direct.agent.send_signal(signal.SIGSTOP)
    pair[0].sendall(b"later")
    direct.rig.turns_during(1.5)  # longer than it takes to ask and to judge, twice
    direct.agent.send_signal(signal.SIGCONT)
    assert exactly(pair[1], 5) == b"later"
    direct.rig.turns_during(0.8)
    talk(pair)
    assert trunk_of(direct) is before


@pytest.mark.parametrize(
    "lie",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        decoder.encode_hello(65_535),
        decoder.encode_ping(b"question"),
        agent_wire.encode_snapshot([]),
        decoder.encode_eof(2) * 2,
        decoder.encode_move(2),
    ],
    ids=["HTTP", "hello", "ping", "snapshot", "two ends", "move"],
)
def test_agent_that_breaks_the_trunks_protocol_gets_no_second_trunk(
    direct: Direct, between: Between, lie: bytes
) -> None:
    stays = bring_up(direct)
    client, served = direct.pair()
    talk((client, served))
    between.hosts[0].sendall(lie)
    with pytest.raises(ConnectionResetError):
        read_all(served)
    with contextlib.suppress(ConnectionResetError):  # an end that was injected is believed, like on any other network
        read_all(client)
    for _ in range(6):
        talk(direct.pair())
        direct.rig.turns_during(0.1)
    talk(stays)
    assert trunk_of(direct) is None and len(between.hosts) == 1


def test_a_killed_agent_takes_both_paths(direct: Direct) -> None:
    pairs = [bring_up(direct), direct.pair()]
    for pair in pairs:
        talk(pair)
    direct.agent.send_signal(signal.SIGKILL)
    direct.rig.expect(MuxLost)
    for client, _ in pairs:  # the servers hear from its kernel what any process that was killed says
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_a_mux_that_retires_keeps_it_for_its_last_connection(direct: Direct) -> None:
    first = bring_up(direct)
    client, served = direct.pair()
    direct.rig.plane.submit(MuxRetire(SESSION))
    first[0].close()
    first[1].close()
    direct.rig.turns_during(1.0)  # some pings
    talk((client, served), 50_000)
    assert direct.agent.poll() is None
    client.close()
    served.close()
    assert direct.agent.wait(TIMEOUT_S) == 0


@pytest.mark.parametrize("end", ["orderly", "cut"])
def test_no_descriptor_is_left(binary: Path, between: Between, end: str) -> None:
    before = descriptors("self")
    with rig() as one:
        path = Direct(one, binary)
        bring_up(path)
        pairs = [path.pair() for _ in range(5)]
        for pair in pairs:
            talk(pair)
        if end == "cut":
            between.cut("RST")
        path.close()
        for pair in pairs:
            is_cut(pair)
    between.cut("FIN")
    eventually(lambda: descriptors("self") <= before, "our descriptors")

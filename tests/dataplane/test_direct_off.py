"""The direct path is switched off and on under connections, without an engine: new ones leave it at once, none is lost."""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from autoforward.dataplane.messages import MuxDirect
from autoforward.dataplane.mux import exec_mux, trunk
from autoforward.dataplane.mux.trunk import Trunk
from tests.support import agent_wire
from tests.support.direct_rig import (
    SESSION,
    Direct,
    PlayedAgent,
    descriptors,
    eventually,
    exactly,
    in_thread,
    moved_pair,
    pattern,
)
from tests.support.plane_rig import rig

pytestmark = pytest.mark.local

ADDRESS = "127.0.0.1"
SIZE = 50_000
QUIET = 10_000
"""More bytes than pings are while a connection says SIZE; fewer than SIZE."""

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_mux, "PING_INTERVAL_S", 0.2)
    monkeypatch.setattr(trunk, "SEEK_AGAIN_S", 0.2)


def allow(direct: Direct, address: str | None) -> None:
    direct.rig.plane.submit(MuxDirect(SESSION, address))
    direct.rig.counters()  # carried out by the time that this is answered


def trunk_of(direct: Direct) -> Trunk | None:
    found = direct.rig.plane._muxes.get(SESSION)
    assert found is not None
    return found._trunks._trunk


def bring_up(direct: Direct) -> Pair:
    first = direct.pair()
    eventually(lambda: trunk_of(direct) is not None, "a trunk")
    return first


def talk(pair: Pair, size: int = SIZE) -> None:
    for source, sink in (pair, pair[::-1]):
        data = random.randbytes(size)
        source.sendall(data)
        assert exactly(sink, size) == data


def over_exec(direct: Direct, pair: Pair) -> bool:
    """Which way its bytes go."""
    heard, said = direct.stream.heard, direct.stream.said
    talk(pair)
    moved = direct.stream.heard - heard, direct.stream.said - said
    assert all(size < QUIET or size >= SIZE for size in moved)
    return min(moved) >= SIZE


def listens(direct: Direct) -> bool:
    rows = [line.split() for line in Path(f"/proc/{direct.agent.pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == "0A"}
    links = [path.readlink() for path in Path(f"/proc/{direct.agent.pid}/fd").iterdir()]
    return any(f"socket:[{inode}]" in map(str, links) for inode in inodes)


def test_new_connections_leave_the_trunk_and_it_ends_after_its_last(direct: Direct) -> None:
    bring_up(direct)
    before = direct.pair()
    assert not over_exec(direct, before)
    fds = direct.agent_fds()
    allow(direct, None)
    eventually(lambda: not listens(direct), "the listener's end")
    after = direct.pair()
    assert over_exec(direct, after)
    assert not over_exec(direct, before), "what was open stays whole where it is"
    assert trunk_of(direct) is not None
    for end in before:
        end.close()
    eventually(lambda: trunk_of(direct) is None, "the trunk's end")
    eventually(lambda: direct.agent_fds() == fds - 2, "the agent's listener, trunk and server; but one server more")
    talk(after)
    allow(direct, ADDRESS)
    talk(direct.pair())
    eventually(lambda: trunk_of(direct) is not None, "another trunk")
    assert not over_exec(direct, direct.pair())
    assert over_exec(direct, after)


def test_an_idle_trunk_ends_at_once(direct: Direct) -> None:
    bring_up(direct)
    allow(direct, None)
    eventually(lambda: trunk_of(direct) is None and not listens(direct), "the end of both")
    assert over_exec(direct, direct.pair())


def test_trunk_that_still_has_connections_is_taken_up_again(direct: Direct) -> None:
    bring_up(direct)
    held = direct.pair()
    one = trunk_of(direct)
    allow(direct, None)
    allow(direct, ADDRESS)
    assert not over_exec(direct, direct.pair())
    assert trunk_of(direct) is one
    talk(held)


def test_direct_path_allowed_later_carries_the_next_connection(binary: Path) -> None:
    """The engine may say later than the first client comes that the path may be used: no second client is needed."""
    with rig() as one:
        path = Direct(one, binary, None)
        assert over_exec(path, path.pair())
        assert not listens(path)
        allow(path, ADDRESS)
        eventually(lambda: trunk_of(path) is not None, "a trunk")
        assert not over_exec(path, path.pair())
        path.close()


def test_bulk_stays_on_the_exec_stream_while_it_is_off_and_moves_after(direct: Direct) -> None:
    bring_up(direct)
    allow(direct, None)
    client, served = direct.pair()
    before, data = direct.agent_fds(), pattern(4 << 20)
    thread = in_thread(lambda: served.sendall(data))
    assert exactly_large(client, len(data)) == data
    thread.join()
    assert direct.agent_fds() <= before, "no connection of its own"
    allow(direct, ADDRESS)
    moved_pair(direct)


def exactly_large(sock: socket.socket, size: int) -> bytes:
    parts = []
    while size and (piece := sock.recv(min(size, 1 << 20))):
        parts.append(piece)
        size -= len(piece)
    return b"".join(parts)


def test_answer_of_the_listener_before_is_passed_over() -> None:
    """The agent's word of where it listened came after "listen no more": nothing is dialled there."""
    with rig() as one:
        agent = PlayedAgent(one, ADDRESS)
        one.connect()
        first = agent.expect(agent_wire.Listen)
        one.plane.submit(MuxDirect(SESSION, None))
        one.plane.submit(MuxDirect(SESSION, ADDRESS))
        stop = agent.expect(agent_wire.Listen)
        assert (stop.secret, stop.address) == (b"", "")
        with socket.create_server((ADDRESS, 0)) as old, socket.create_server((ADDRESS, 0)) as new:
            agent.sock.sendall(agent_wire.encode_listening(old.getsockname()[1]))
            one.connect()
            second = agent.expect(agent_wire.Listen)  # after the ping behind the stop was answered
            assert second.secret != first.secret
            agent.sock.sendall(agent_wire.encode_listening(new.getsockname()[1]))
            agent.announced(agent_wire.Trunk)
            new.settimeout(10)
            new.accept()[0].close()
            old.setblocking(False)
            with pytest.raises(BlockingIOError):
                old.accept()


def test_a_hundred_switches_under_connections_lose_none(direct: Direct) -> None:
    before = descriptors("self")
    chance = random.Random(7)
    pairs = [bring_up(direct)]
    for number in range(100):
        direct.rig.plane.submit(MuxDirect(SESSION, chance.choice([None, ADDRESS])))
        pairs.append(direct.pair())
        for pair in chance.sample(pairs, min(len(pairs), 4)):
            talk(pair, chance.choice([1, 1000, 100_000]))
        if number % 10 == 9:
            for end in (end for pair in pairs for end in pair):
                end.close()
            pairs.clear()
    allow(direct, None)
    eventually(lambda: trunk_of(direct) is None and not listens(direct), "the end of the trunk")
    eventually(lambda: descriptors("self") <= before, "our descriptors")

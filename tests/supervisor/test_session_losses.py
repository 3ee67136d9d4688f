"""A session against an engine of socketpairs, when watchers, containers and engines go away and come back."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import EngineUnreachableError
from autoforward.core.identity.labels import LABEL_PROJECT_FOLDER as FOLDER
from autoforward.core.model import Identity
from autoforward.core.port_spec import parse_port_spec
from autoforward.lanes import shell_watcher as detector_module
from autoforward.lanes.shell_watcher import PONG_TIMEOUT_S
from autoforward.state.document import format_time
from autoforward.supervisor.session import actor as actor_module
from autoforward.supervisor.session import openings as connections_module
from autoforward.supervisor.session import session as session_module
from autoforward.supervisor.session.shared import SessionLimits
from tests.support.containers import eventually
from tests.support.fake_engine import NO_TOOLS, OPENED
from tests.support.harness import TIMEOUT_S, accepts, free_port
from tests.support.world import RECORD, World, client_of, closing, received

pytestmark = pytest.mark.local


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "delay_s", lambda _failures, **_how: 0.01)


async def carried_by_the_next_watch(one: World, port: int) -> None:
    """What the client has said meanwhile arrives."""
    (await one.engine.watcher(2)).listen(port)
    relay = await one.engine.relay()
    relay.say(OPENED, stream=2)
    assert await asyncio.to_thread(relay.read) == b"early"


@pytest.mark.parametrize("how", ["end", "nonsense"])
@closing
async def test_a_watcher_that_is_lost_is_started_again(world: Any, port: int, how: str) -> None:
    one = world()
    first = await one.begin(port)
    host_port = one.host_port(port)
    if how == "end":
        first.end()
    else:
        first.say(b"AF begin 99\n")
    second = await one.engine.watcher(2)
    second.listen(port)
    with client_of(host_port):
        await one.engine.relay()  # the gate is open again
    assert one.publisher.names == ["attached", "forwarded"], "no news: nothing that a user knows of has changed"
    if how == "nonsense":
        assert await asyncio.to_thread(first.hears_eof), "what talks nonsense is let go"


@closing
async def test_a_container_that_restarts_keeps_its_host_port(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    host_port = one.host_port(port)
    one.engine.change(state="exited")
    watcher.end()
    event = await one.publisher.wait_for("reconnecting")
    assert (event.host_port, event.status, event.reason) == (host_port, "reconnecting", "the container is exited")
    assert one.session.state == "stopped"
    one.engine.change(state="running")
    one.event("start")
    watcher = await one.engine.watcher(2)
    watcher.listen()
    with client_of(host_port):  # waits for the server, which is slower than its container
        watcher.listen(port)
        event = await one.publisher.wait_for("reconnected")
        assert (event.host_port, event.status) == (host_port, "active")
        await one.engine.relay()
    assert one.publisher.names == ["attached", "forwarded", "reconnecting", "reconnected"]


@closing
async def test_the_servers_of_a_restarted_container_have_a_time_to_come_back(world: Any, port: int) -> None:
    one = world(limits=SessionLimits(restart_grace_s=0.3, withdrawal_grace_s=0.05))
    watcher = await one.begin(port)
    watcher.end()
    (await one.engine.watcher(2)).listen()
    event = await one.publisher.wait_for("reconnecting")
    assert event.reason == "its server is not back yet"
    await one.publisher.wait_for("unforwarded")
    assert one.publisher.names == ["attached", "forwarded", "reconnecting", "unforwarded"]


@closing
async def test_all_forwards_of_a_port_wait_for_its_server_to_come_back(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    await one.session.claim(1, parse_port_spec(f"{free_port()}:{port}"))
    watcher.end()
    watcher = await one.engine.watcher(2)
    watcher.listen()
    await one.publisher.wait_for("reconnecting")
    rows = one.session.forwarder.forwards
    await asyncio.to_thread(eventually, lambda: [row.status for row in rows] == ["reconnecting"] * 2)
    assert {row.reason for row in rows} == {"its server is not back yet"}
    watcher.listen(port)
    await asyncio.to_thread(eventually, lambda: [row.status for row in rows] == ["active"] * 2)
    assert len(one.session.forwarder.forwards) == 2


@pytest.mark.parametrize("stopped_first", [False, True])
@closing
async def test_a_container_that_is_removed_ends_its_session(world: Any, port: int, stopped_first: bool) -> None:
    one = world()
    watcher = await one.begin(port)
    host_port = one.host_port(port)
    if stopped_first:
        one.engine.change(state="exited")
        watcher.end()
        await one.publisher.wait_for("reconnecting")
        one.engine.info = None
        one.event("destroy")
    else:
        one.engine.info = None
        watcher.end()
    await one.session.wait_ended()
    assert one.publisher.names[-2:] == ["unforwarded", "detached"]
    assert {event.reason for event in one.publisher.events[-2:]} == {"the container web is gone"}
    assert one.ended == ["the container web is gone"]
    assert not accepts(host_port)
    assert one.leases()[port].state == "reserved"


OF_SHOP = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
SERVICE = replace(RECORD, identity=Identity("unix:///engine", "compose:shop", "web"), project="shop", service="web")


@closing
async def test_a_service_that_is_removed_waits_for_the_next_one(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world(SERVICE)
    one.engine.change(labels=OF_SHOP)
    watcher = await one.begin(port)
    host_port = one.host_port(port)
    old, one.engine.info = one.engine.info, None
    watcher.end()
    event = await one.publisher.wait_for("reconnecting")
    assert event.reason == "web was removed: shop/web#1 is waited for"
    assert (one.session.state, one.session.keeps_supervisor_alive) == ("stopped", True)
    assert one.session.record.removed is not None

    # Another service, another folder's project of that name, and one that does not run are not it.
    others = ({**OF_SHOP, "com.docker.compose.service": "db"}, {**OF_SHOP, FOLDER: "/else"}, OF_SHOP)
    for labels, state in zip(others, ("running", "running", "exited"), strict=True):
        inspected = one.engine.inspected
        one.engine.info = replace(old, container_id="decaf00decaf00", name="web-2", labels=labels, state=state)
        one.session.recheck()
        await asyncio.to_thread(eventually, lambda n=inspected: one.engine.inspected > n)
        assert one.session.record.container_id == old.container_id
    one.engine.change(state="running")
    one.session.recheck()
    (await one.engine.watcher(2)).listen(port)
    event = await one.publisher.wait_for("reconnected")
    assert (event.container_id, event.host_port) == ("decaf00decaf00", host_port)
    assert one.session.record.removed is None
    assert "unforwarded" not in one.publisher.names

    # For long: its numbers go, nothing is kept running for it, and it is there for the next container all the same.
    monkeypatch.setattr(session_module, "DORMANT_AFTER_S", 0.05)
    one.engine.info = None
    one.engine.watchers[-1].end()
    await one.publisher.wait_for("unforwarded")
    await asyncio.to_thread(eventually, lambda: one.session.state == "dormant")
    assert not one.session.keeps_supervisor_alive
    assert not accepts(host_port)
    one.engine.info = replace(old, container_id="facade00facade", name="web-3")
    one.session.recheck()
    (await one.engine.watcher(3)).listen(port)
    await asyncio.to_thread(eventually, lambda: one.statuses() == {port: "active"})
    assert one.host_port(port) == host_port


@closing
async def test_session_that_waits_for_a_container_is_dormant_and_then_forgotten(world: Any) -> None:
    """As the next supervisor takes it up."""

    def removed(days: float) -> SessionRecord:
        return replace(SERVICE, removed=format_time(datetime.now(UTC) - timedelta(days=days)))

    one = world(removed(29))
    one.engine.info = None
    one.session.start()
    await asyncio.to_thread(eventually, lambda: one.session.state == "dormant")
    other = world(removed(30))
    other.engine.info = None
    other.session.start()
    await other.session.wait_ended()
    assert other.ended == ["web was removed long ago, and no other came"]


def test_sessions_that_outlive_their_containers() -> None:
    """Of a workspace or a service, wanted for longer than a command, and not by a watch."""
    manual = parse_port_spec("8080")
    of_folder = replace(SERVICE, identity=Identity("unix:///engine", "workspace:/shop:"))
    for record in (SERVICE, of_folder, replace(SERVICE, attached=False, manual=manual)):
        assert record.outlives_container
    for record in (RECORD, replace(SERVICE, attached=False), replace(SERVICE, watch="dev containers")):
        assert not record.outlives_container


@closing
async def test_a_paused_container_and_its_end(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    host_port = one.host_port(port)
    one.event("pause")
    await one.publisher.wait_for("reconnecting")
    with client_of(host_port):
        one.event("unpause")
        await one.publisher.wait_for("reconnected")
        await one.engine.relay()
    assert (await asyncio.to_thread(watcher.read)).startswith(b"ping 1\n"), "is the watcher still there?"
    assert one.publisher.names == ["attached", "forwarded", "reconnecting", "reconnected"]
    assert len(one.engine.watchers) == 1


@closing
async def test_without_a_lane_a_pause_changes_nothing(world: Any, port: int) -> None:
    """The reason was forgotten with the pause, and ports that nothing can carry were bound."""
    one = world(probe=NO_TOOLS)
    watcher = await one.begin(port)
    one.event("pause")
    one.event("unpause")
    other = free_port()
    watcher.listen(port, other)
    await asyncio.to_thread(eventually, lambda: len(one.statuses()) == 2)
    assert one.statuses() == {port: "failed", other: "failed"}


@closing
async def test_a_pause_within_the_grace_is_not_a_busy_loop(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grace ran out while nothing could be decided, and the session asked the clock over and over."""
    one = world(limits=SessionLimits(withdrawal_grace_s=0.1))
    watcher = await one.begin(port)
    watcher.listen()
    await asyncio.to_thread(eventually, lambda: one.session._recheck_at_s is not None)
    one.event("pause")
    await one.publisher.wait_for("reconnecting")
    turns = 0
    next_item = one.session._actor.next_item

    async def counted(timeout_s: float | None) -> Any:
        nonlocal turns
        turns += 1
        return await next_item(timeout_s)

    monkeypatch.setattr(one.session._actor, "next_item", counted)
    await asyncio.sleep(0.3)  # the grace, thrice: there is nothing that could be waited for
    assert turns <= 2
    one.event("unpause")
    await one.publisher.wait_for("unforwarded")


@closing
async def test_connections_to_a_container_out_of_reach_are_held_and_then_reset(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "HOLD_S", 0.2)
    one = world()
    watcher = await one.begin(port)
    one.engine.change(state="exited")
    watcher.end()
    await one.publisher.wait_for("reconnecting")
    with client_of(one.host_port(port)) as client, pytest.raises(ConnectionResetError):
        await received(client)
    assert one.engine.relays == []


@closing
async def test_a_connection_that_was_held_is_carried_once_the_container_is_back(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    one.engine.change(state="exited")
    watcher.end()
    await one.publisher.wait_for("reconnecting")
    with client_of(one.host_port(port)) as client:
        client.sendall(b"early")
        one.engine.change(state="running")
        one.event("start")
        await carried_by_the_next_watch(one, port)


@pytest.mark.parametrize("answers", [True, False])
@closing
async def test_after_a_sleep_of_the_machine_a_watcher_that_says_nothing_is_replaced(
    world: Any, port: int, answers: bool
) -> None:
    """Its own patience is ten seconds; what is dead after a sleep has to be replaced within two."""
    one = world()
    first = await one.begin(port)
    host_port = one.host_port(port)
    began_s = time.monotonic()
    one.session.check_streams(20.0 if answers else 0.5)
    said = await asyncio.to_thread(first.read)
    assert said.startswith(b"ping ")
    if answers:
        first.say(said.replace(b"ping", b"pong"), stream=2)
        one.session.check_streams(3600.0)  # asked anew: its answer comes after what a loss would have done
        assert (await asyncio.to_thread(first.read)).startswith(b"ping ")
        assert len(one.engine.watchers) == 1
        return
    (await one.engine.watcher(2)).listen(port)
    assert time.monotonic() - began_s < PONG_TIMEOUT_S
    with client_of(host_port):
        await one.engine.relay()
    assert await asyncio.to_thread(first.hears_eof)
    assert one.publisher.names == ["attached", "forwarded"]


@closing
async def test_an_engine_that_hangs_is_said_to_before_it_times_out(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "PATIENCE_S", 0.2)
    one = world()
    watcher = await one.begin(port)
    one.engine.hanging = hanging = threading.Event()
    watcher.end()
    event = await one.publisher.wait_for("reconnecting")
    assert (event.status, event.reason) == ("reconnecting", "the engine at unix:///engine takes long to answer")
    assert one.session.state == "reconnecting"
    assert not hanging.is_set()
    one.engine.hanging = None
    hanging.set()
    (await one.engine.watcher(2)).listen(port)
    assert (await one.publisher.wait_for("reconnected")).reason is None
    assert one.publisher.names == ["attached", "forwarded", "reconnecting", "reconnected"]


@closing
async def test_a_container_stopped_for_long_keeps_its_leases_only(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "DORMANT_AFTER_S", 0.05)
    one = world()
    watcher = await one.begin(port)
    host_port = one.host_port(port)
    one.engine.change(state="exited")
    watcher.end()
    await one.publisher.wait_for("unforwarded")
    await asyncio.to_thread(eventually, lambda: one.session.state == "dormant")
    assert not one.session.keeps_supervisor_alive
    assert not accepts(host_port)
    one.engine.change(state="running")
    one.event("start")
    (await one.engine.watcher(2)).listen(port)
    await asyncio.to_thread(eventually, lambda: one.statuses() == {port: "active"})
    assert one.host_port(port) == host_port


@closing
async def test_between_a_loss_and_the_sessions_turn_no_connection_is_opened_over_what_was_lost(
    world: Any, port: int
) -> None:
    one = world()
    watcher = await one.begin(port)
    busy = asyncio.Event()
    turn = asyncio.create_task(one.session._actor.execute(busy.wait))
    watcher.end()
    [ours] = [stream for stream in one.engine.streams if stream.fileno() >= 0]
    await asyncio.to_thread(eventually, lambda: ours.fileno() < 0)
    with client_of(one.host_port(port)) as client:
        client.sendall(b"early")
        await asyncio.to_thread(eventually, lambda: len(one.session.connections._opening) == 1)
        assert one.engine.relays == []
        busy.set()
        await turn
        await carried_by_the_next_watch(one, port)


@pytest.mark.parametrize("goes", [True, False])
@closing
async def test_an_engine_that_goes_refuses_processes_before_it_is_known_to_go(
    world: Any, port: int, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not go, its refusal is the answer."""
    monkeypatch.setattr(connections_module, "LOSS_SHOWS_S", TIMEOUT_S if goes else 0.1)
    one = world()
    watcher = await one.begin(port)
    one.engine.broken = EngineUnreachableError("the engine does not answer")
    asked = one.engine.inspected
    with client_of(one.host_port(port)) as client:
        client.sendall(b"early")
        await asyncio.to_thread(eventually, lambda: one.engine.inspected > asked)
        if not goes:
            with pytest.raises(ConnectionResetError):
                await received(client)
            return
        watcher.end()
        await one.publisher.wait_for("reconnecting")
        one.engine.broken = None
        await carried_by_the_next_watch(one, port)


@closing
async def test_a_pause_and_its_end_that_the_engines_events_did_not_tell(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that says nothing is given up only once the engine has said that its container is not paused."""
    monkeypatch.setattr(detector_module, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(detector_module, "PONG_TIMEOUT_S", 0.05)
    one = world()
    watcher = await one.begin(port)
    with client_of(one.host_port(port)) as client:
        client.sendall(b"before")
        relay = await one.engine.relay()
        relay.say(OPENED, stream=2)
        assert await asyncio.to_thread(relay.read) == b"before"
        one.engine.change(state="paused")
        watcher_says = await asyncio.to_thread(watcher.read)
        event = await one.publisher.wait_for("reconnecting")
        assert event.reason == "the container is paused"
        asked = one.engine.inspected
        await asyncio.sleep(0.5)  # ten times all that it is patient for
        assert one.engine.inspected == asked
        one.engine.change(state="running")
        watcher.say(watcher_says.splitlines()[0].replace(b"ping", b"pong") + b"\n", stream=2)
        await one.publisher.wait_for("reconnected")
        client.sendall(b"after")
        assert await asyncio.to_thread(relay.read) == b"after"
    assert len(one.engine.watchers) == 1
    await one.engine.watcher(2)  # it goes on saying nothing, and now the engine says that it runs

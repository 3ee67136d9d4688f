"""A session against an engine of socketpairs: what it does when watchers, containers and engines come and go."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from autoforward.engine import ContainerEvent, Engine
from autoforward.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.messages import Notice
from autoforward.model import Identity
from autoforward.portspec import parse_port_spec
from autoforward.settings import SessionRecord
from autoforward.supervisor import connections as connections_module
from autoforward.supervisor import session as session_module
from autoforward.supervisor.services import SessionServices
from autoforward.supervisor.session import Session
from tests.containers import eventually
from tests.local.fake_engine import NO_TOOLS, OPENED, FakeEngine, Process
from tests.local.harness import LOOPBACK, TIMEOUT_S, Bench, accepts, free_port, in_loop

RECORD = SessionRecord(
    "ses-00000001",
    Identity("unix:///engine", "name:web"),
    FakeEngine.endpoint,
    "c0ffee00c0ffee00",
    "web",
    "web",
)


class World(Bench):
    """One session, its fake engine, and the way of the data plane's notices to it."""

    def __init__(self, folder: Path, engine: FakeEngine, record: SessionRecord) -> None:
        super().__init__(folder, self._hand_over)
        self.publisher.connects = False
        self.engine = engine
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="engine")
        self.ended: list[str] = []
        self._loop = asyncio.get_running_loop()
        services = SessionServices(self.plane, self.allocator, self.publisher, self.disk, self.pool)
        self.session = Session(
            record, cast(Engine, engine), services, lambda _session, reason: self.ended.append(reason), lambda: None
        )

    def _hand_over(self, notice: Notice) -> None:
        self._loop.call_soon_threadsafe(self._on_notice, notice)

    def _on_notice(self, notice: Notice) -> None:
        words = {"StreamWanted": "stream_wanted", "RelayStarted": "relay_started", "RelayEnded": "relay_ended"}
        if (name := words.get(type(notice).__name__)) is not None:
            getattr(self.session.connections, f"on_{name}")(notice)

    async def begin(self, *container_ports: int) -> Process:
        """Start it and let the watcher see these ports; the watcher."""
        self.session.start()
        watcher = await self.engine.watcher()
        watcher.listen(*container_ports)
        await self.session.settled()
        return watcher

    def event(self, action: str) -> None:
        self.session.notice_event(ContainerEvent(action, "c0ffee00c0ffee00", "web", {}))

    def host_port(self, container_port: int) -> int:
        [row] = [row for row in self.session.forwarder.forwards if row.wish.key.container_port == container_port]
        assert row.host_port is not None
        return row.host_port

    def statuses(self) -> dict[int, str]:
        return {row["port"]: row["status"] for row in self.session.rows({})}

    async def close(self) -> None:  # type: ignore[override]  # a session ends on its loop
        await self.session.end("the test is over")
        self.engine.close()
        # In a thread: what is being opened in the pool may still be on its way to the data plane.
        await asyncio.to_thread(self.pool.shutdown)
        closed = lambda: all(stream.fileno() < 0 for stream in self.engine.streams)  # noqa: E731
        await asyncio.to_thread(eventually, closed, what="every stream is closed")
        super().close()


class Worlds:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, record: SessionRecord = RECORD, **engine: Any) -> World:
        return World(self._folder, FakeEngine(**engine), record)


@pytest.fixture
def world(tmp_path: Path) -> Worlds:
    return Worlds(tmp_path / "home")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "BACKOFF_S", (0.01,))


def closing(test: Any) -> Any:
    """The test's world is closed on its loop, however the test ends."""

    async def run(world: Worlds, **fixtures: Any) -> None:
        made: list[World] = []

        def make(record: SessionRecord = RECORD, **engine: Any) -> World:
            made.append(world(record, **engine))
            return made[-1]

        try:
            await test(make, **fixtures)
        finally:
            for one in made:
                await one.close()

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    names = [name for name in test.__code__.co_varnames[: test.__code__.co_argcount] if name != "world"]
    return _with_fixtures(run, names)


def _with_fixtures(run: Any, names: list[str]) -> Any:
    import inspect

    wrapped = in_loop(run)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ["world", *names]]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return wrapped


@contextmanager
def client_of(host_port: int) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, host_port), timeout=TIMEOUT_S) as sock:
        yield sock


async def received(sock: socket.socket) -> bytes:
    return await asyncio.to_thread(sock.recv, 100)


# -- beginning -----------------------------------------------------------------------------------


@closing
async def test_it_has_settled_once_the_first_snapshot_is_applied(world: Any, port: int) -> None:
    one = world()
    one.session.start()
    watcher = await one.engine.watcher()
    assert one.session.state == "starting"
    settled = asyncio.ensure_future(one.session.settled())
    assert not (await asyncio.wait([settled], timeout=0.05))[0]
    watcher.listen(port)
    await settled
    assert one.session.state == "watching"
    assert one.publisher.names == ["attached", "forwarded"]
    assert accepts(one.host_port(port))
    assert one.session.describe()["lane"]["name"] == "socat"


@closing
async def test_servers_come_and_go_with_the_snapshots(world: Any, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoforward.policy.WITHDRAWAL_GRACE_S", 0.05)
    one = world()
    watcher = await one.begin()
    watcher.listen(port)
    await one.publisher.wait_for("forwarded")
    watcher.listen()
    event = await one.publisher.wait_for("unforwarded")
    assert (event.container_port, event.reason) == (port, "the server stopped")
    assert one.publisher.names == ["attached", "forwarded", "unforwarded"]


@closing
async def test_a_connection_is_carried_by_a_process_of_its_own(world: Any, port: int) -> None:
    one = world()
    await one.begin(port)
    with client_of(one.host_port(port)) as client:
        relay = await one.engine.relay()
        assert "TCP4:127.0.0.1" in " ".join(relay.argv)
        assert set(relay.environment) == {"AUTOFORWARD_RELAY", "AUTOFORWARD_SESSION"}
        relay.say(OPENED, stream=2)
        client.sendall(b"question")
        assert await asyncio.to_thread(relay.read) == b"question"
        relay.say(b"answer")
        assert await received(client) == b"answer"
        relay.end()
        assert await received(client) == b""


@closing
async def test_without_a_shell_it_fails_until_the_container_starts_anew(world: Any, port: int) -> None:
    one = world(probe=b"")
    one.engine.exit_status = 127
    one.session.start()
    await one.session.settled()
    assert one.session.state == "failed"
    assert one.session.problem
    assert "shell" in one.session.problem
    one.engine.probe = FakeEngine(probe=NO_TOOLS).probe
    one.event("start")
    (await one.engine.watcher()).listen(port)
    await one.publisher.wait_for("failed")
    assert one.session.state == "watching"


@closing
async def test_attaching_again_to_one_that_failed_tries_again(world: Any, port: int) -> None:
    """It used to end the session: the command came while nobody expected it."""
    one = world(probe=b"")
    one.engine.exit_status = 127
    one.session.start()
    await one.session.settled()
    one.engine.probe = FakeEngine().probe
    updating = asyncio.ensure_future(one.session.update(RECORD))
    (await one.engine.watcher()).listen(port)
    await updating
    assert one.session.state == "watching"
    assert one.ended == []


@closing
async def test_without_a_lane_ports_fail_with_what_was_tried(world: Any, port: int) -> None:
    one = world(probe=NO_TOOLS)
    await one.begin(port)
    [row] = one.session.rows({})
    assert (row["status"], row["lane"], row["localPort"]) == ("failed", None, None)
    for tool in ("socat", "nc", "bash"):
        assert tool in row["reason"]
    assert one.session.describe()["lane"] is None
    assert one.publisher.names == ["attached", "failed"]


@closing
async def test_an_engine_that_does_not_answer_is_tried_until_it_does(world: Any, port: int) -> None:
    one = world()
    one.engine.broken = EngineUnreachableError("the engine at unix:///engine does not answer")
    one.session.start()
    await one.session.settled()
    assert one.session.state == "reconnecting"
    assert one.session.problem == "the engine at unix:///engine does not answer"
    one.engine.broken = None
    (await one.engine.watcher()).listen(port)
    await one.publisher.wait_for("forwarded")
    assert one.session.state == "watching"
    assert one.session.problem is None


@closing
async def test_attaching_again_while_the_engine_is_away_waits_for_it(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to end the session, when the command came in the pause between two attempts."""
    monkeypatch.setattr(session_module, "BACKOFF_S", (0.01, 0.01, 0.01, 3600))
    one = world()
    one.engine.broken = EngineUnreachableError("the engine at unix:///engine does not answer")
    one.session.start()
    await one.session.settled()
    one.engine.broken = None
    updating = asyncio.ensure_future(one.session.update(RECORD))
    (await one.engine.watcher()).listen(port)
    await updating
    assert one.statuses() == {port: "active"}
    assert one.ended == []


# -- losing things -------------------------------------------------------------------------------


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
    (await one.engine.watcher(2)).listen()
    event = await one.publisher.wait_for("reconnected")
    assert (event.host_port, event.status) == (host_port, "active")
    (await one.engine.watcher(2)).listen(port)
    with client_of(host_port):
        await one.engine.relay()
    assert one.publisher.names == ["attached", "forwarded", "reconnecting", "reconnected"]


@closing
async def test_the_servers_of_a_restarted_container_have_a_time_to_come_back(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "RESTART_GRACE_S", 0.3)
    monkeypatch.setattr(session_module, "WITHDRAWAL_GRACE_S", 0.05)
    monkeypatch.setattr("autoforward.policy.WITHDRAWAL_GRACE_S", 0.05)
    one = world()
    watcher = await one.begin(port)
    watcher.end()
    (await one.engine.watcher(2)).listen()
    await one.publisher.wait_for("unforwarded")
    assert one.publisher.names == ["attached", "forwarded", "unforwarded"]


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
    assert await asyncio.to_thread(watcher.read) == b"ping 1\n", "is the watcher still there?"
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
    monkeypatch.setattr("autoforward.policy.WITHDRAWAL_GRACE_S", 0.1)
    one = world()
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
        (await one.engine.watcher(2)).listen(port)
        relay = await one.engine.relay()
        relay.say(OPENED, stream=2)
        assert await asyncio.to_thread(relay.read) == b"early"


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


# -- commands ------------------------------------------------------------------------------------


@closing
async def test_the_end_does_not_wait_for_an_engine_that_hangs(world: Any) -> None:
    one = world()
    one.engine.hanging = threading.Event()
    one.session.start()
    await asyncio.to_thread(eventually, lambda: one.engine.inspected == 1)
    async with asyncio.timeout(TIMEOUT_S / 2):  # the engine would hang for longer
        await one.session.end("detached")
    assert not one.engine.hanging.is_set()
    assert one.publisher.names == ["attached", "detached"]
    assert one.ended == ["detached"]


@closing
async def test_whoever_waits_for_a_session_that_ends_is_told(world: Any) -> None:
    one = world()
    one.engine.hanging = threading.Event()
    one.session.start()
    claiming = asyncio.ensure_future(one.session.claim(1, parse_port_spec("8080:80")))
    await asyncio.to_thread(eventually, lambda: one.engine.inspected == 1)
    await one.session.end("detached")
    with pytest.raises(TargetError, match="detached"):
        await claiming


@closing
async def test_another_container_takes_over_the_bound_sockets(world: Any, port: int) -> None:
    one = world()
    first = await one.begin(port)
    pairs = [row.pair for row in one.session.forwarder.forwards]
    one.engine.change(container_id="decaf00decaf00", name="web-2")
    updating = asyncio.ensure_future(
        one.session.update(replace(RECORD, container_id="decaf00decaf00", container_name="web-2"))
    )
    (await one.engine.watcher(2)).listen(port)
    await updating
    assert [row.pair for row in one.session.forwarder.forwards] == pairs
    assert await asyncio.to_thread(first.hears_eof), "the watcher in the old container is let go"
    assert [row["containerName"] for row in one.session.rows({})] == ["web-2"]
    assert one.leases()[port].container_id == "decaf00decaf00"
    assert one.publisher.names == ["attached", "forwarded"]


@closing
async def test_other_options_are_taken_over_without_touching_what_stays(world: Any, port: int) -> None:
    one = world()
    other = free_port()
    await one.begin(port, other)
    [pair] = [row.pair for row in one.session.forwarder.forwards if row.wish.key.container_port == port]
    options = replace(RECORD.options, exclude=((other, other),))
    await one.session.update(replace(RECORD, options=options))
    assert one.statuses() == {port: "active", other: "ignored"}
    assert [row.pair for row in one.session.forwarder.forwards] == [pair]
    assert len(one.engine.watchers) == 1, "nothing that the watcher depends on has changed"


@closing
async def test_a_claim_lives_as_long_as_it_is_held(world: Any, port: int) -> None:
    one = world(replace(RECORD, attached=False))
    await one.begin(port)
    assert one.statuses() == {}
    assert not one.session.wanted
    host_port = free_port()
    await one.session.claim(1, parse_port_spec(f"{host_port}:{port}"))
    assert one.host_port(port) == host_port
    assert one.session.wanted
    await one.session.claim(2, parse_port_spec("db:5432"))
    await one.session.release_claim(1)
    assert one.statuses() == {5432: "active"}
    await one.session.release_claim(1)
    await one.session.release_claim(2)
    assert one.statuses() == {}
    assert not one.session.wanted


@closing
async def test_a_stopped_forward_stays_away_until_the_next_attach(world: Any, port: int) -> None:
    one = world()
    watcher = await one.begin(port)
    [forward_id] = one.session.forwarder.forward_ids
    assert await one.session.stop_forward(forward_id)
    assert not await one.session.stop_forward(forward_id)
    other = free_port()
    watcher.listen(port, other)
    await asyncio.to_thread(eventually, lambda: one.statuses() == {other: "active"})
    await one.session.update(RECORD)
    assert one.statuses() == {port: "active", other: "active"}


@closing
async def test_a_command_that_fails_tells_its_caller_and_nobody_else(world: Any, port: int) -> None:
    one = world()
    await one.begin(port)

    async def fail() -> None:
        raise AutoforwardError("no")

    with pytest.raises(AutoforwardError, match="no"):
        await one.session._actor.execute(fail)
    assert one.session.state == "watching"

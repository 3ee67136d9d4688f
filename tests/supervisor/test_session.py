"""A session against an engine of socketpairs: how it begins, and what it does when it is told to."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.core.port_spec import parse_port_spec
from autoforward.dataplane.messages import ForwardCounters
from autoforward.supervisor.autoattach.compose_services import ComposeServices
from autoforward.supervisor.requests import Handlers
from autoforward.supervisor.session import session as session_module
from autoforward.supervisor.session.shared import SessionLimits
from autoforward.supervisor.session.status_rows import describe
from tests.support.containers import eventually
from tests.support.fake_engine import NO_TOOLS, OPENED, FakeEngine
from tests.support.harness import TIMEOUT_S, accepts, free_port
from tests.support.world import RECORD, client_of, closing, received

pytestmark = pytest.mark.local


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "delay_s", lambda _failures, **_how: 0.01)


# -- beginning -----------------------------------------------------------------------------------


@closing
async def test_session_has_settled_once_the_first_snapshot_is_applied(world: Any, port: int) -> None:
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
    assert describe(one.session)["lane"]["name"] == "socat"


@closing
async def test_servers_come_and_go_with_the_snapshots(world: Any, port: int) -> None:
    one = world(limits=SessionLimits(withdrawal_grace_s=0.05))
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
async def test_session_without_a_shell_fails_until_the_container_restarts(world: Any, port: int) -> None:
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
async def test_attach_to_a_failed_session_tries_again(world: Any, port: int) -> None:
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
async def test_ports_without_a_lane_fail_with_what_was_tried(world: Any, port: int) -> None:
    one = world(probe=NO_TOOLS)
    await one.begin(port)
    [row] = one.session.rows({})
    assert (row["status"], row["lane"], row["localPort"]) == ("failed", None, None)
    for tool in ("socat", "nc", "bash"):
        assert tool in row["reason"]
    assert describe(one.session)["lane"] is None
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
async def test_problem_says_the_containers_name_where_the_engine_says_its_id(world: Any) -> None:
    one = world()
    one.engine.broken = EngineUnreachableError(f"the engine says: {RECORD.container_id} is restarting")
    one.session.start()
    await one.session.settled()
    assert one.session.problem == f"the engine says: {RECORD.container_name} is restarting"


@closing
async def test_attach_while_the_engine_is_away_waits_for_it(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to end the session, when the command came in the pause between two attempts."""
    monkeypatch.setattr(session_module, "delay_s", lambda failures, **_how: 0.01 if failures < 4 else 3600.0)
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
async def test_waiters_for_a_session_that_ends_are_answered(world: Any) -> None:
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
    [pair] = [row.pair for row in one.session.forwarder.forwards if row.wanted.key.container_port == port]
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
async def test_a_pin_of_a_port_that_is_forwarded_is_a_forward_of_its_own(world: Any, port: int) -> None:
    """Seen: `forward . 25140:5173` took the number away from who used 5173, and with `-d` for good."""
    one = world()
    await one.begin(port)
    [row] = one.session.forwarder.forwards
    first, second, third = (free_port() for _ in range(3))

    def numbers() -> list[int | None]:
        assert row in one.session.forwarder.forwards, "it stays as it was"
        return [each.host_port for each in one.session.forwarder.forwards if each is not row]

    asked = parse_port_spec(f"{first}:{port}")
    told = await one.session.claim(1, asked)
    assert await one.session.claim(2, asked) == told != asked
    await one.session.claim(3, parse_port_spec(f"{second}:{port}"))
    assert numbers() == [first, second]
    await one.session.release_claim(1)
    assert numbers() == [first, second], "another command asked for the same"
    await one.session.release_claim(2)
    assert numbers() == [second]
    [forward_id] = one.session.forwarder.ids_of({spec.key for spec in one.session.manual_specs})
    assert await one.session.stop_forward(forward_id)
    assert numbers() == []
    stored = one.session.told_apart(parse_port_spec(f"{third}:{port}"))
    await one.session.update(replace(one.session.record, manual=stored))
    assert set(numbers()) == {second, third}, "an update undoes the stop of what a command still holds"
    ids = one.session.forwarder.forward_ids
    assert len(ids) == 3
    assert one.publisher.names.count("unforwarded") == 2


@closing
async def test_a_pin_that_is_handed_over_is_stored_as_the_forward_of_its_own_that_it_is(world: Any, port: int) -> None:
    one = world()
    await one.begin(port)
    first, second = free_port(), free_port()

    async def store(_session: Any) -> None:
        pass

    async def counters() -> dict[str, ForwardCounters]:
        return {}

    supervisor = SimpleNamespace(
        engines=SimpleNamespace(renew=lambda _endpoint: None),
        session_for=lambda _record: one.session,
        store_session=store,
        counters=counters,
        claim_ids=itertools.count(),
        foreground=0,
        check_idle=lambda: None,
    )
    supervisor.siblings = ComposeServices(cast(Any, supervisor))
    told: list[str] = []

    async def progress(text: str) -> None:
        told.append(text)

    async def forward(host_port: int) -> Any:
        record = replace(RECORD, attached=False, manual=parse_port_spec(f"{host_port}:{port}"))
        request = {"record": record.to_json(), "detached": True}
        answer = await Handlers(cast(Any, supervisor)).forward(request, cast(Any, SimpleNamespace(progress=progress)))
        return [row["localPort"] for row in answer["rows"]]

    assert await forward(first) == [first]
    await supervisor.siblings.take_up(replace(RECORD, manual=parse_port_spec(f"{second}:{port}")))
    assert await forward(second) == [second]
    numbers = {row.host_port: row.wanted.source for row in one.session.forwarder.forwards}
    assert numbers == {port: "detected", first: "manual", second: "manual"}
    assert all("over the slower lane" in text for text in told), "this engine's containers can have no agent"
    assert len(told) == 2
    assert [spec.key.pin for spec in SessionRecord.from_json(one.session.record.to_json()).manual] == [first, second]
    assert "unforwarded" not in one.publisher.names


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
async def test_failing_command_tells_its_caller_alone(world: Any, port: int) -> None:
    one = world()
    await one.begin(port)

    async def fail() -> None:
        raise AutoforwardError("no")

    with pytest.raises(AutoforwardError, match="no"):
        await one.session._actor.execute(fail)
    assert one.session.state == "watching"

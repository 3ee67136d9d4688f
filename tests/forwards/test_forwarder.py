"""The table of forwards on real loopback sockets, a real data plane and a real registry.

Every event is checked as it is published, by `harness.Recorder`: against the schema, and against the sockets and the
registry at that moment.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoforward.core.model import ForwardKey, PublishedPort
from autoforward.core.port_spec import parse_port_spec
from autoforward.core.setting_values import PortFilter
from autoforward.dataplane.messages import Command, ForwardCounters, Route
from autoforward.devcontainers.port_attributes import AttributeRules, parse_attributes
from autoforward.forwards.plan import SessionRules
from tests.support.containers import eventually
from tests.support.harness import LOOPBACK, PLACE, Table, accepts, frame, free_port, in_loop

pytestmark = pytest.mark.local


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path / "home")
    yield table
    table.close()


@pytest.fixture
def port() -> int:
    return free_port()


def declared(*texts: str, **more: Any) -> SessionRules:
    return SessionRules(declared=tuple(spec for text in texts for spec in parse_port_spec(text)), **more)


def manual(*texts: str) -> SessionRules:
    return SessionRules(manual=tuple(spec for text in texts for spec in parse_port_spec(text)))


def labelled(port: int, label: str) -> AttributeRules:
    return parse_attributes({str(port): {"label": label}}, None, "test")[0]


@in_loop
async def test_a_detected_port_comes_and_goes(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    [event] = table.publisher.events
    assert (event.event, event.status, event.host_port, event.remapped) == ("forwarded", "active", port, False)
    assert (event.container_id, event.container_name, event.workspace_folder) == (
        PLACE.container_id,
        "web",
        "/home/me/web",
    )
    assert event.url == f"http://localhost:{port}"
    table.take()
    await table.apply(SessionRules())
    [event] = table.publisher.events
    assert (event.event, event.status, event.reason) == ("unforwarded", None, "the server stopped")
    assert not accepts(port)
    assert table.leases()[port].state == "reserved"
    assert not table.forwarder.forwards


@in_loop
async def test_the_same_plan_again_is_no_news(table: Table, port: int) -> None:
    for _ in range(2):
        await table.apply(SessionRules(), port)
    assert table.take() == [("forwarded", port)]


@in_loop
async def test_waiting_serving_and_waiting_again_keep_the_number(table: Table, port: int) -> None:
    rules = declared(str(port))
    for container_ports in ((), (port,), (), (port,)):
        await table.apply(rules, *container_ports)
        assert table.host_port(port) == port
        assert accepts(port) is bool(container_ports)
        with socket.socket() as thief, pytest.raises(OSError, match="in use"):
            thief.bind((LOOPBACK, port))
    assert table.take() == [("waiting", port), ("forwarded", port), ("waiting", port), ("forwarded", port)]
    await table.apply(SessionRules())
    [event] = table.publisher.events
    assert (event.event, event.reason) == ("unforwarded", "no longer asked for")


@in_loop
async def test_a_number_taken_at_the_start_is_remapped_with_its_reason(table: Table, port: int) -> None:
    with socket.create_server((LOOPBACK, port)):
        await table.apply(SessionRules(), port)
        [event] = table.publisher.events
        assert event.event == "forwarded"
        assert event.remapped
        assert event.host_port != port
        assert event.reason is not None
        assert str(port) in event.reason
        [row] = table.rows()
        assert (row["remapped"], row["reason"], row["localPort"]) == (True, event.reason, event.host_port)


@in_loop
async def test_a_forward_gets_its_own_number_when_its_server_restarts_and_not_before(table: Table, port: int) -> None:
    """Seen: a login's callback on the second-best number for 30 days, and its reason named a process that was dead."""
    with socket.create_server((LOOPBACK, port)):
        wanted = await table.apply(SessionRules(), port)
        second_best = table.host_port(port)
        assert second_best != port
    [row] = table.rows()
    assert row["reason"].startswith(f"host port {port} was in use")
    assert row["reason"].endswith(" and is free now: this port gets it when its server restarts")
    wanted = await table.apply_after(wanted.seen, SessionRules(), port)
    assert table.host_port(port) == second_best, "never under a server that is up"
    gone = await table.apply_after(wanted.seen, SessionRules())
    assert table.host_port(port) == second_best, "bound for as long as it may restart"
    table.take()
    await table.apply_after(gone.seen, SessionRules(), port)
    assert table.host_port(port) == port
    assert table.take() == [("unforwarded", port), ("forwarded", port)]
    [row] = table.rows()
    assert (row["reason"], row["remapped"]) == (None, False)


@in_loop
async def test_a_waiting_port_gets_its_own_number_when_its_server_starts(table: Table, port: int) -> None:
    rules = declared(str(port))
    with socket.create_server((LOOPBACK, port)):
        await table.apply(rules)
    assert table.host_port(port) != port
    await table.apply(rules, port)
    assert table.host_port(port) == port


@in_loop
async def test_a_server_that_restarts_stays_where_it_is_while_its_own_number_is_taken(table: Table, port: int) -> None:
    with socket.create_server((LOOPBACK, port)):
        wanted = await table.apply(SessionRules(), port)
        second_best = table.host_port(port)
        gone = await table.apply_after(wanted.seen, SessionRules())
        table.take()
        await table.apply_after(gone.seen, SessionRules(), port)
        assert (table.host_port(port), table.take()) == (second_best, [])


def steal(table: Table, container_port: int) -> socket.socket:
    """Somebody listens on the reserved number, in the moment of `start_listening` in which Linux lets him."""
    [pair] = [row.pair for row in table.forwarder.forwards if row.wanted.key.container_port == container_port]
    assert pair is not None
    pair.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    thief = socket.create_server((LOOPBACK, pair.host_port))
    table.publisher.foreign_ports.add(pair.host_port)
    return thief


@in_loop
async def test_a_number_stolen_while_waiting_is_replaced(table: Table, port: int) -> None:
    await table.apply(declared(str(port)))
    assert table.host_port(port) == port
    with steal(table, port):
        await table.apply(declared(str(port)), port)
        assert table.take() == [("waiting", port), ("unforwarded", port), ("forwarded", port)]
        assert table.host_port(port) != port
        assert accepts(table.host_port(port))


@in_loop
async def test_a_pinned_number_stolen_while_waiting_fails_and_is_tried_again(table: Table, port: int) -> None:
    rules = manual(f"{port}:3000")
    await table.apply(rules)
    with steal(table, 3000):
        await table.apply(rules, 3000)
        assert table.take() == [("waiting", 3000), ("unforwarded", 3000), ("failed", 3000)]
        assert table.forwarder.has_failures
        for _ in range(2):
            await table.forwarder.retry_failed(LOOPBACK)
        assert table.take() == [], "a failure is told once"
        [row] = table.rows()
        assert (row["status"], row["autoForwarded"], row["localPort"], row["id"]) == ("failed", False, None, None)
        assert f"host port {port} is in use" in row["reason"]
    table.publisher.foreign_ports.clear()
    await table.forwarder.retry_failed(LOOPBACK)
    assert table.take() == [("forwarded", 3000)]
    assert not table.forwarder.has_failures
    assert table.host_port(3000) == port


@in_loop
async def test_a_failed_row_stays_while_it_is_tried_anew(table: Table, port: int) -> None:
    rules = manual(f"{port}:3000")
    with socket.create_server((LOOPBACK, port)):
        await table.apply(rules)
        applying = asyncio.create_task(table.apply(rules, 3000, address="::1"))
        while not applying.done():
            assert [row["status"] for row in table.rows()] == ["failed"]
            await asyncio.sleep(0)
        assert table.take() == [("failed", 3000), ("updated", 3000)], "not ended, and its reason is no news"
        [row] = table.rows()
        assert row["containerHost"] == "::1"


@in_loop
async def test_away_and_back_keeps_sockets_and_states(table: Table) -> None:
    active, waiting = free_port(), free_port()
    await table.apply(declared(str(active), str(waiting)), active)
    sockets = [row.pair for row in table.forwarder.forwards]
    table.take()
    await table.forwarder.suspend("the container is paused")
    assert {event.reason for event in table.publisher.events} == {"the container is paused"}
    assert [event.auto_forwarded for event in table.publisher.events] == [False, False]
    assert {row["status"] for row in table.rows()} == {"reconnecting"}
    assert table.take() == [("reconnecting", active), ("reconnecting", waiting)]
    await table.forwarder.suspend("again")
    assert table.take() == []
    assert accepts(active), "connections of that time wait; they are not refused"
    await table.apply(declared(str(active), str(waiting)), active)
    assert [(event.event, event.status) for event in table.publisher.events] == [
        ("reconnected", "active"),
        ("reconnected", "waiting"),
    ]
    assert [row.pair for row in table.forwarder.forwards] == sockets
    assert not accepts(waiting)
    await table.apply(declared(str(active), str(waiting)), active)
    assert len(table.publisher.events) == 2


@in_loop
async def test_the_next_container_takes_over_the_bound_sockets(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    [pair] = [row.pair for row in table.forwarder.forwards]
    await table.forwarder.move_to(replace(PLACE, container_id="decaf00decaf00", container_name="web-2"))
    assert [row.pair for row in table.forwarder.forwards] == [pair]
    assert accepts(port)
    assert table.leases()[port].container_id == "decaf00decaf00"
    assert [row["containerName"] for row in table.rows()] == ["web-2"]
    table.take()
    await table.apply(SessionRules())
    [event] = table.publisher.events
    assert (event.event, event.container_id) == ("unforwarded", "decaf00decaf00")


@in_loop
async def test_a_new_label_is_an_update_and_is_in_the_registry(table: Table, port: int) -> None:
    await table.apply(SessionRules(attributes=labelled(port, "web")), port)
    assert table.leases()[port].label == "web"
    table.take()
    for _ in range(2):
        await table.apply(SessionRules(attributes=labelled(port, "shop")), port)
    [event] = table.publisher.events
    assert (event.event, event.label, event.host_port) == ("updated", "shop", port)
    assert table.leases()[port].label == "shop"


@in_loop
async def test_a_server_that_moved_to_another_address_is_an_update(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    table.take()
    await table.apply(SessionRules(), port, address="::1")
    [event] = table.publisher.events
    assert (event.event, event.container_host) == ("updated", "::1")
    [row] = table.forwarder.forwards
    dials = table.forwarder.dials_of(row.forward_id or "")
    assert dials is not None
    assert [dial.host for dial in dials] == ["::1"]


@in_loop
async def test_ports_that_are_not_forwarded_have_their_events(table: Table, port: int) -> None:
    rules = SessionRules(published=(PublishedPort("tcp", port, "0.0.0.0", 8300),))
    await table.apply(rules, port, address="0.0.0.0")
    [event] = table.publisher.events
    assert (event.event, event.status, event.host_ip, event.host_port) == ("ignored", "published", "0.0.0.0", 8300)
    [row] = table.rows()
    assert (row["status"], row["autoForwarded"], row["id"], row["lane"]) == ("published", False, None, None)
    assert "8300" in table.forwarder.refusal_reason(ForwardKey("tcp", None, port))
    table.take()
    await table.apply(rules)
    [event] = table.publisher.events
    assert (event.event, event.status, event.auto_forwarded) == ("unforwarded", None, False)
    assert table.rows() == []


@in_loop
async def test_without_a_lane_the_port_fails_and_is_forwarded_once_there_is_one(table: Table, port: int) -> None:
    await table.apply(SessionRules(blocked="no lane works in this container: none of socat, nc"), port)
    [event] = table.publisher.events
    assert (event.event, event.status) == ("failed", "failed")
    assert event.reason == "no lane works in this container: none of socat, nc"
    table.take()
    await table.apply(SessionRules(), port)
    assert [row["status"] for row in table.rows()] == ["active"]


@in_loop
async def test_the_limit_is_told_once_while_it_lasts_and_its_row_counts(table: Table) -> None:
    first, second, third = sorted((free_port(), free_port(), free_port()))
    rules = SessionRules(max_forwards=1)

    def counted() -> list[str]:
        return [row["reason"] for row in table.rows() if row["port"] is None]

    for ports in ((first, second), (first, second, third), (first, second)):
        await table.apply(rules, *ports)
        assert counted() == [f"{len(ports) - 1} more ports are not forwarded: the limit is 1"]
    [forwarded, limit] = table.publisher.events
    assert forwarded.container_port == first
    fact = "there are more ports than the limit of 1: the rest is not forwarded"
    assert (limit.event, limit.container_port, limit.status, limit.reason) == ("ignored", None, "ignored", fact)
    table.take()
    await table.apply(replace(rules, max_forwards=2), first, second, third)
    assert counted() == ["1 more ports are not forwarded: the limit is 2"]
    await table.apply(replace(rules, max_forwards=2), first, second)
    assert counted() == []
    assert [(event.event, event.container_port, event.status) for event in table.publisher.events] == [
        ("forwarded", second, "active"),
        ("updated", None, "ignored"),
        ("unforwarded", None, None),
    ]


@in_loop
async def test_open_connections_outlive_their_listener_but_not_the_forward(table: Table, port: int) -> None:
    """A server that stopped may still be answering; a forward that was ended is ended."""
    table.carry = True
    table.publisher.connects = False  # its own looks would be connections too
    await table.apply(declared(str(port)), port)
    with socket.create_connection((LOOPBACK, port), timeout=10) as client:
        [far] = eventually(lambda: table.far)
        client.sendall(b"question")
        assert far.recv(100) == b"question"
        await table.apply(declared(str(port)))
        far.sendall(frame(b"late answer"))
        assert client.recv(100) == b"late answer"
        await table.forwarder.close_all("detached")
        with pytest.raises(ConnectionResetError):
            client.recv(100)
        assert far.recv(100) == b""
    assert table.publisher.names == ["forwarded", "waiting", "unforwarded"]
    assert table.publisher.events[-1].reason == "detached"


@in_loop
async def test_ending_everything_frees_numbers_and_reserves_leases(table: Table) -> None:
    ports = sorted((free_port(), free_port()))
    await table.apply(declared(str(ports[1]), "db:5432"), ports[0])
    held = [row.host_port for row in table.forwarder.forwards]
    assert len(held) == 3
    table.take()
    await table.forwarder.close_all("the supervisor ended")
    assert table.publisher.names == ["unforwarded"] * 3
    assert {lease.state for lease in table.leases().values()} == {"reserved"}
    assert table.forwarder.forward_ids == frozenset()
    await table.forwarder.close_all("again")
    assert len(table.publisher.events) == 3


@in_loop
async def test_stopped_forward_leaves_the_others(table: Table) -> None:
    first, second = sorted((free_port(), free_port()))
    await table.apply(SessionRules(), first, second)
    await table.forwarder.close_one(ForwardKey("tcp", None, first), "stopped by the user")
    assert table.publisher.events[-1].reason == "stopped by the user"
    assert not accepts(first)
    assert accepts(second)
    await table.forwarder.close_one(ForwardKey("tcp", None, first), "again")
    assert table.publisher.names == ["forwarded", "forwarded", "unforwarded"]


@in_loop
async def test_a_refusal_is_the_reason_until_a_connection_succeeds(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    [row] = table.forwarder.forwards
    table.forwarder.note_refusal(row.forward_id or "", "Connection refused")
    assert [row["reason"] for row in table.rows()] == ["Connection refused"]
    table.forwarder.note_refusal(row.forward_id or "", None)
    assert [row["reason"] for row in table.rows()] == [None]
    table.forwarder.note_refusal("fwd-00000000", "for a forward that has gone")


@in_loop
async def test_late_follower_is_told_of_each_forward(table: Table) -> None:
    up, waiting = free_port(), free_port()
    await table.apply(declared(str(waiting)), up)
    [event] = table.forwarder.replay_events(7, "2026-01-01T00:00:00.000Z")
    assert (event.event, event.container_port, event.seq, event.replay) == ("forwarded", up, 7, True)


@in_loop
async def test_rows_carry_what_only_a_list_knows(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    [row] = table.forwarder.forwards
    counters = {row.forward_id or "": ForwardCounters(active=1, total=3, refused=1, bytes_in=10, bytes_out=20)}
    [shown] = table.forwarder.rows("shop/web", "socat", counters)
    assert (shown["target"], shown["source"], shown["lane"]) == ("shop/web", "detected", "socat")
    assert shown["connections"] == {"active": 1, "total": 3, "refused": 1}
    assert shown["bytes"] == {"in": 10, "out": 20}
    assert shown["ageSeconds"] >= 0
    assert not {"event", "seq", "time"} & shown.keys()


@in_loop
async def test_the_second_best_number_comes_back_with_the_server_while_its_own_is_taken(
    table: Table, port: int
) -> None:
    with socket.create_server((LOOPBACK, port)):
        await table.apply(SessionRules(), port)
        remapped = table.host_port(port)
        ids = table.forwarder.forward_ids
        await table.apply(SessionRules())
        await table.apply(SessionRules(), port)
        assert table.host_port(port) == remapped
    await table.apply(SessionRules())
    await table.apply(SessionRules(), port)
    assert table.host_port(port) == port
    assert table.forwarder.forward_ids == ids


@in_loop
async def test_a_new_supervisor_moves_no_forward_of_a_server_that_is_up(table: Table, port: int) -> None:
    with socket.create_server((LOOPBACK, port)):
        await table.apply(SessionRules(), port)
        remapped = table.host_port(port)
        await table.forwarder.close_all("the supervisor ended")
    table.forwarder.takes_up = True
    # Whose port it is may be known a moment later.
    undecided = await table.apply(SessionRules(default_exclude=True), port)
    assert (undecided.undecided, table.forwarder.forwards) == (1, ())
    await table.apply(SessionRules(), port)
    assert table.host_port(port) == remapped
    [row] = table.rows()
    assert row["reason"] == "kept from before the supervisor's restart"
    await table.apply(SessionRules())
    await table.apply(SessionRules(), port)
    assert table.host_port(port) == port


@in_loop
async def test_a_bind_address_that_changed_moves_the_forward(table: Table, port: int) -> None:
    wanted = await table.apply(SessionRules(), port)
    await table.forwarder.apply(wanted, "127.0.0.2")
    assert table.publisher.names == ["forwarded", "unforwarded", "forwarded"]
    assert accepts(port, "127.0.0.2")
    assert not accepts(port, LOOPBACK)


@in_loop
async def test_a_port_that_is_not_forwarded_is_said_once_and_what_changes_about_it_is_an_update(table: Table) -> None:
    port = free_port()
    rules = SessionRules(exclude=PortFilter(((port, port),)))
    await table.apply(rules, port)
    await table.apply(replace(rules, attributes=labelled(port, "web")), port)
    assert [(event.event, event.label) for event in table.publisher.events] == [("ignored", None), ("updated", "web")]
    assert {event.status for event in table.publisher.events} == {"ignored"}


@in_loop
async def test_a_pin_that_moves_a_forward_is_said_to_be_the_reason(table: Table, port: int) -> None:
    await table.apply(SessionRules(), port)
    pin = free_port()
    await table.apply(manual(f"{pin}:{port}"), port)
    first, moved, last = table.publisher.events
    assert (first.host_port, last.host_port) == (port, pin)
    assert (moved.event, moved.reason) == ("unforwarded", f"it moves to host port {pin}, which was asked for")


@in_loop
async def test_numbers_that_another_container_asks_for_are_let_go_where_no_server_is_behind_them(table: Table) -> None:
    busy, away, kept = (free_port() for _ in range(3))
    await table.apply(declared(str(away), str(kept)), busy)
    asked = frozenset({("tcp", table.host_port(busy)), ("tcp", table.host_port(away)), ("udp", table.host_port(kept))})
    await table.forwarder.give_up(asked)
    assert {row.host_port for row in table.forwarder.forwards} == {busy, kept}
    assert table.publisher.events[-1].reason == "a container that publishes this host port was created"
    with socket.socket() as other:
        other.bind((LOOPBACK, away))


@in_loop
async def test_connections_go_over_the_agent_unasked_only_while_the_server_is_up(
    table: Table, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one to a port that listens without a server would be dialled, and reset, at once."""
    ways: list[str] = []
    submit = table.plane.submit

    def note(command: Command) -> None:
        if isinstance(command, Route):
            ways.append(command.session_id)
        submit(command)

    monkeypatch.setattr(table.plane, "submit", note)
    table.publisher.connects = False
    rules = declared(str(port), wait_for_server_s=5.0)
    table.forwarder.route_over("ses")
    last = []
    for container_ports in ((), (port,), (), (port,)):
        await table.apply(rules, *container_ports)
        table.forwarder.route_over("ses")
        assert accepts(table.host_port(port))
        last.append(ways[-1])
    assert last == ["", "ses", "", "ses"]

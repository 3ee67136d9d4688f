"""`waitForServer`: a connection to a declared port comes before its server, and waits for it instead of being refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from autoforward.config.session_record import SessionRecord
from autoforward.core.port_spec import parse_port_spec
from autoforward.forwards import forwarder as forwarder_module
from autoforward.supervisor.session.shared import SessionLimits
from tests.support.fake_engine import OPENED
from tests.support.harness import LOOPBACK, TIMEOUT_S, accepts, free_port
from tests.support.world import RECORD, World, client_of, closing, received

pytestmark = pytest.mark.local

LONG_S = 60.0
"""Longer than a test may take: what it waits for is the server."""


def declaring(ports: Sequence[int], wait_s: float) -> SessionRecord:
    specs = tuple(spec for port in ports for spec in parse_port_spec(str(port)))
    return replace(RECORD, declared=specs, options=replace(RECORD.options, wait_for_server_s=wait_s))


async def carried(one: World, client: socket.socket, number: int = 1) -> None:
    """The client, which said `early`, has its answer from the server behind the n-th relay."""
    relay = await one.engine.relay(number)
    relay.say(OPENED, stream=2)
    assert await asyncio.to_thread(relay.read) == b"early"
    relay.say(b"late")
    assert await received(client) == b"late"


async def waiting_client(host_port: int) -> socket.socket:
    """A connection that was neither reset nor answered for a moment; those before it were."""
    while True:
        client = socket.socket()
        client.settimeout(TIMEOUT_S)
        try:
            client.connect((LOOPBACK, host_port))
            client.settimeout(0.2)
            await received(client)
        except TimeoutError:
            client.settimeout(TIMEOUT_S)
            return client
        except ConnectionResetError:
            client.close()


@closing
async def test_a_client_that_comes_before_the_server_has_its_answer(world: Any) -> None:
    ports = [free_port() for _ in range(10)]
    one = world(declaring(ports, LONG_S))
    watcher = await one.begin()
    assert set(one.statuses().values()) == {"waiting"}
    for count, port in enumerate(ports, start=1):
        with client_of(one.host_port(port)) as client:
            client.sendall(b"early")
            assert len(one.engine.relays) == count - 1, "nothing goes into the container before the server is there"
            watcher.listen(*ports[:count])
            await carried(one, client, count)
    assert set(one.statuses().values()) == {"active"}


@pytest.mark.parametrize("wait_s", [0.0, LONG_S])
@closing
async def test_connection_without_the_setting_is_refused_at_once(world: Any, port: int, wait_s: float) -> None:
    one = world(declaring([port], wait_s))
    await one.begin()
    [row] = one.session.rows({})
    assert (row["status"], row["autoForwarded"]) == ("waiting", False)
    assert row["reason"] == ("new connections wait up to 60 s for its server first" if wait_s else None)
    assert accepts(one.host_port(port)) is bool(wait_s)
    assert accepts(one.host_port(port), "::1") is bool(wait_s)


@closing
async def test_connection_is_reset_after_its_time(world: Any, port: int) -> None:
    one = world(declaring([port], 0.2))
    await one.begin()
    with pytest.raises(ConnectionResetError), client_of(one.host_port(port)) as client:
        await received(client)
    assert one.engine.relays == []
    [row] = one.session.rows({})
    assert (row["status"], row["reason"]) == ("waiting", "its server did not come within 0.2 s")


@pytest.mark.parametrize("limit", ["MAX_HELD", "MAX_HELD_OF_ALL"])
@closing
async def test_waiting_connections_are_bounded_and_those_that_break_off_make_room(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(forwarder_module, limit, 2)
    one = world(declaring([port], LONG_S))
    watcher = await one.begin()
    host_port = one.host_port(port)
    with contextlib.closing(await waiting_client(host_port)) as first:
        second = await waiting_client(host_port)
        with pytest.raises(ConnectionResetError), client_of(host_port) as third:
            await received(third)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        second.close()  # with a reset; one that only closes may have said all that it wants to
        with contextlib.closing(await waiting_client(host_port)) as fourth:
            clients = (first, fourth)
            for client in clients:
                client.sendall(b"early")
            watcher.listen(port)
            for number in (1, 2):  # in whichever order the engine starts them
                relay = await one.engine.relay(number)
                relay.say(OPENED, stream=2)
                assert await asyncio.to_thread(relay.read) == b"early"
                relay.say(b"late")
            assert [await received(client) for client in clients] == [b"late", b"late"]


@closing
async def test_a_server_that_stops_is_waited_for_again(world: Any, port: int) -> None:
    one = world(declaring([port], LONG_S), limits=SessionLimits(withdrawal_grace_s=0.05))
    watcher = await one.begin(port)
    for number in (1, 2):
        one.publisher.take()
        watcher.listen()
        await one.publisher.wait_for("waiting")
        with client_of(one.host_port(port)) as client:
            client.sendall(b"early")
            watcher.listen(port)
            await carried(one, client, number)


@closing
async def test_connection_waits_for_a_container_that_goes_meanwhile_too(world: Any, port: int) -> None:
    one = world(declaring([port], LONG_S))
    watcher = await one.begin()
    with contextlib.closing(await waiting_client(one.host_port(port))) as client:
        client.sendall(b"early")
        one.engine.change(state="exited")
        watcher.end()
        await one.publisher.wait_for("reconnecting")
        one.engine.change(state="running")
        one.event("start")
        again = await one.engine.watcher(2)
        again.listen()
        await one.publisher.wait_for("reconnected")
        assert one.statuses() == {port: "waiting"}
        again.listen(port)
        await carried(one, client)


@closing
async def test_the_setting_changes_what_is_bound_already(world: Any, port: int) -> None:
    one = world(declaring([port], 0.0))
    await one.begin()
    host_port = one.host_port(port)
    for wait_s in (LONG_S, 0.0, LONG_S):
        await one.session.update(declaring([port], wait_s))
        assert accepts(host_port) is bool(wait_s)
        assert (one.host_port(port), one.statuses()) == (host_port, {port: "waiting"})


@pytest.mark.parametrize("waits", [True, False])
@closing
async def test_a_forward_keeps_its_number_while_connections_wait_on_it(world: Any, port: int, waits: bool) -> None:
    """Without them it gets its own number once its server comes."""
    one = world(declaring([port], LONG_S))
    with socket.create_server((LOOPBACK, port)):
        watcher = await one.begin()
    second_best = one.host_port(port)
    assert second_best != port
    with contextlib.ExitStack() as closed:
        if waits:
            client = closed.enter_context(contextlib.closing(await waiting_client(second_best)))
            client.sendall(b"early")
        watcher.listen(port)
        if waits:
            await carried(one, client)
        await one.publisher.wait_for("forwarded")
    assert one.host_port(port) == (second_best if waits else port)


@closing
async def test_the_end_of_the_forward_ends_those_that_wait(world: Any, port: int) -> None:
    one = world(declaring([port], LONG_S))
    await one.begin()
    with contextlib.closing(await waiting_client(one.host_port(port))) as client:
        await one.session.update(declaring([], LONG_S))
        with pytest.raises(ConnectionResetError):
            await received(client)

"""More connections than there may be: a reset with a reason, once told, and the next is served when there is room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from autoforward.dataplane.connections import ConnectionLimits
from autoforward.dataplane.messages import AcceptPaused, RelayEnded
from autoforward.supervisor.session import openings as connections_module
from tests.support.containers import eventually
from tests.support.fake_engine import OPENED
from tests.support.harness import free_port
from tests.support.plane_rig import read_all, rig
from tests.support.world import client_of, closing, received

pytestmark = pytest.mark.local


def test_a_forward_has_a_limit_of_open_connections() -> None:
    with rig(max_connections=3) as here:
        pairs = [here.relay() for _ in range(3)]
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                here.connect().recv(1)
        reason = "3 connections are open, and one forward may have no more"
        ended = here.expect(RelayEnded)
        assert (ended.refused, ended.reason) == (True, reason)
        assert not here.has(RelayEnded), "told once"
        counters = here.counters()
        assert (counters.active, counters.total, counters.refused) == (3, 5, 2)
        client, far = pairs[0]
        far.stdout(b"whole")
        far.exit()
        assert read_all(client) == b"whole", "those that are open are served on"
        assert not here.expect(RelayEnded).refused
        _, far = here.relay()
        assert here.counters().active == 3


def test_the_last_descriptors_are_not_for_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _which: (256, 256))
    at = ConnectionLimits()
    assert at.refusal_reason(191, 63) is None
    assert at.refusal_reason(192, 63) == "of 256 descriptors the last 64 are not for connections"
    assert at.refusal_reason(20, 64) == "64 connections are open, and one forward may have no more"


@closing
async def test_a_lane_with_processes_has_a_limit_of_them(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "MAX_PROCESSES", 1)
    one, port = world(), free_port()
    await one.begin(port)
    with client_of(one.host_port(port)) as first:
        relay = await one.engine.relay()
        relay.say(OPENED, stream=2)
        relay.say(b"served")
        assert await received(first) == b"served"
        with client_of(one.host_port(port)) as second, pytest.raises(ConnectionResetError):
            await received(second)
        await _shows(one, "1 connections are open, each a process in the container: the socat lane has no more")
        relay.end()
    with client_of(one.host_port(port)) as third:
        relay = await one.engine.relay(2)
        relay.say(OPENED, stream=2)
        relay.say(b"served, too")
        assert await received(third) == b"served, too"
        relay.end()
        await _shows(one, None)


@closing
async def test_pause_of_accepting_is_in_the_list(world: Any) -> None:
    one, port = world(), free_port()
    await one.begin(port)
    [forward_id] = one.session.forwarder.forward_ids
    one.session.connections.on_accept_paused(AcceptPaused(forward_id, "Too many open files"))
    await _shows(one, "accepting connections is paused: Too many open files")


async def _shows(one: Any, reason: str | None) -> None:
    await asyncio.to_thread(eventually, lambda: [row["reason"] for row in one.session.rows({})] == [reason])

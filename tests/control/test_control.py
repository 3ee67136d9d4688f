"""Both ends of the control socket, and the hub of events, in one process over a real Unix socket."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from autoforward.cli.console.supervisor_client import Call, SupervisorGoneError
from autoforward.control.server import Connection, ControlServer
from autoforward.core.errors import (
    AutoforwardError,
    EngineUnreachableError,
    PortUnavailableError,
    TargetError,
    UsageError,
)
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StatePaths
from autoforward.supervisor import event_hub as hub_module
from autoforward.supervisor.event_hub import EventHub
from tests.support.harness import TIMEOUT_S, in_loop

pytestmark = pytest.mark.local

ERRORS = (AutoforwardError, UsageError, EngineUnreachableError, TargetError, PortUnavailableError)


class Handlers:
    """Requests for tests. `gate` is what `wait` waits for; `heard` what came over a connection after its request."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.waiting = asyncio.Event()
        self.heard: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def echo(self, request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        await connection.progress("thinking")
        await connection.event("PORT_EVENT: {}")
        return {"said": request["say"]}

    async def fail(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        raise ERRORS[request["kind"]]("it broke", hint=request["hint"])

    async def wait(self, _request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        self.waiting.set()
        await self.gate.wait()
        return {}

    async def hold(self, _request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        await connection.send({"type": "bound", "rows": []})
        while (message := await connection.receive()) is not None:
            self.heard.put_nowait(message)
        self.heard.put_nowait(None)
        return {}

    async def flood(self, _request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        for _ in range(1000):
            await connection.progress("x" * 10_000)
        self.heard.put_nowait({})
        return {}


@asynccontextmanager
async def serving(tmp_path: Path) -> Any:
    handlers = Handlers()
    names = ("echo", "fail", "wait", "hold", "flood")
    server = ControlServer(tmp_path / "control.sock", {name: getattr(handlers, name) for name in names})
    await server.start()
    try:
        yield server, handlers
    finally:
        await server.aclose(0.1)


def connected(folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT_S)
    sock.connect(str(folder / "control.sock"))
    return sock


def call(folder: Path, **request: Any) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The messages on the way and the result; blocks, so it runs in a thread."""
    with Call(connected(folder), request) as one:
        return list(one), one.result


@in_loop
async def test_a_request_its_messages_and_its_result(tmp_path: Path) -> None:
    async with serving(tmp_path):
        messages, result = await asyncio.to_thread(call, tmp_path, op="echo", say="ü")
        assert messages == [{"type": "progress", "text": "thinking"}, {"type": "event", "line": "PORT_EVENT: {}"}]
        assert result == {"type": "result", "said": "ü"}


@in_loop
async def test_errors_arrive_as_what_they_were(tmp_path: Path) -> None:
    async with serving(tmp_path):
        for number, kind in enumerate(ERRORS):
            with pytest.raises(AutoforwardError, match="it broke") as caught:
                await asyncio.to_thread(call, tmp_path, op="fail", kind=number, hint="mend it")
            assert type(caught.value) is kind
            assert (caught.value.exit_code, caught.value.hint) == (kind.exit_code, "mend it")


@in_loop
async def test_the_socket_is_private_and_replaces_a_dead_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
    async with serving(tmp_path):
        assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600
        assert (await asyncio.to_thread(call, tmp_path, op="echo", say=1))[1] is not None
    assert not (tmp_path / "control.sock").exists()


@in_loop
async def test_a_foreground_command_can_speak_and_its_end_is_heard(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, handlers):
        one = Call(connected(tmp_path), {"op": "hold"})
        assert await asyncio.to_thread(next, iter(one)) == {"type": "bound", "rows": []}
        one.send({"drain": True})
        assert await handlers.heard.get() == {"drain": True}
        one.close()
        assert await handlers.heard.get() is None


@in_loop
async def test_a_command_that_went_away_in_mid_answer_harms_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, handlers):
        one = Call(connected(tmp_path), {"op": "flood"})
        await asyncio.to_thread(next, iter(one))
        one.close()
        assert await handlers.heard.get() == {}
        assert (await asyncio.to_thread(call, tmp_path, op="echo", say=1))[1] is not None


@in_loop
async def test_the_end_lets_running_requests_answer(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, handlers):
        asking = asyncio.ensure_future(asyncio.to_thread(call, tmp_path, op="wait"))
        await handlers.waiting.wait()
        closing = asyncio.ensure_future(server.aclose(TIMEOUT_S))
        await asyncio.sleep(0)
        assert not (tmp_path / "control.sock").exists(), "nobody else is let in"
        handlers.gate.set()
        assert await asking == ([], {"type": "result"})
        await closing


@in_loop
async def test_the_end_waits_a_bounded_time_and_the_command_is_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, handlers):
        asking = asyncio.ensure_future(asyncio.to_thread(call, tmp_path, op="wait"))
        await handlers.waiting.wait()
        await server.aclose(0.05)
        with pytest.raises(SupervisorGoneError, match="before it had answered"):
            await asking


@in_loop
async def test_a_bug_in_a_request_is_an_error_for_that_command(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(AutoforwardError, match="malformed"):
            await asyncio.to_thread(call, tmp_path, op="echo")
        with pytest.raises(UsageError, match="'sing'") as caught:
            await asyncio.to_thread(call, tmp_path, op="sing")
        assert caught.value.hint


@in_loop
async def test_a_supervisor_that_ends_as_it_is_asked_is_asked_again_once(tmp_path: Path) -> None:
    """Met after kill -9: the dying process still has the socket open for a moment, and hears nothing any more."""

    def dying() -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    async with serving(tmp_path):
        with Call(dying(), {"op": "echo", "say": 1}, lambda: connected(tmp_path)) as one:
            assert len(await asyncio.to_thread(list, one)) == 2
            assert one.result == {"type": "result", "said": 1}
        for again in (None, lambda: None, dying):
            with Call(dying(), {"op": "echo"}, again) as one, pytest.raises(SupervisorGoneError):
                list(one)


@in_loop
async def test_a_request_that_was_heard_is_not_sent_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, handlers):
        again = []
        with Call(connected(tmp_path), {"op": "hold"}, lambda: again.append(1)) as one:  # type: ignore[arg-type, func-returns-value]
            messages = iter(one)
            await asyncio.to_thread(next, messages)
            await server.aclose(0.0)
            with pytest.raises(SupervisorGoneError):
                await asyncio.to_thread(list, messages)
        assert handlers.heard.empty()
        assert again == []


# -- events on their way -------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    paths = StatePaths(tmp_path / "home")
    paths.ensure()
    return EventLog(paths, print)


def event(container_port: int) -> PortEvent:
    return PortEvent(event="waiting", container_port=container_port, container_id="c0ffee")


@in_loop
async def test_followers_hear_in_order_what_they_asked_for(log: EventLog) -> None:
    hub = EventHub(log)
    with hub.subscribe(lambda _event: True) as everything, hub.subscribe(lambda e: e.container_port == 2) as some:
        await asyncio.gather(*(hub.publish(event(number)) for number in range(50)))
        assert [one.container_port for one in everything.drain()] == list(range(50))
        assert [(one.container_port, one.seq) for one in some.drain()] == [(2, 3)]
        assert hub.last_seq == 50
        assert everything.drain() == []
    await hub.publish(event(1))
    assert everything.drain() == [], "who has gone hears nothing"
    await asyncio.to_thread(hub.close)


@in_loop
async def test_a_follower_that_is_too_slow_is_cut_off(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_BACKLOG", 3)
    hub = EventHub(log)
    with hub.subscribe(lambda _event: True) as slow:
        for number in range(10):
            await hub.publish(event(number))
        heard = [await slow.get() for _ in range(4)]
        assert [one.container_port if one else None for one in heard] == [0, 1, 2, None]
    await asyncio.to_thread(hub.close)


@in_loop
async def test_the_end_of_the_hub_is_told_to_its_followers(log: EventLog) -> None:
    hub = EventHub(log)
    with hub.subscribe(lambda _event: True) as follower:
        await hub.publish(event(1))
        hub.close()
        heard = [await follower.get(), await follower.get()]
        assert [one.container_port if one else None for one in heard] == [1, None]

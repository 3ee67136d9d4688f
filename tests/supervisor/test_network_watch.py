"""What happens to the direct paths of an engine's sessions when containers come and go; without an engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.core.errors import EngineUnreachableError
from autoforward.core.identity.network_sharing import Network
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.dataplane.messages import MuxDirect
from autoforward.engine.client import ContainerEvent, Running
from autoforward.supervisor import network_watch
from autoforward.supervisor.network_watch import NetworkWatch
from autoforward.supervisor.session.direct_switch import DirectSwitch
from tests.support.harness import in_loop

pytestmark = pytest.mark.local

ENDPOINT = EngineEndpoint("unix:///engine", "a test")
TIMEOUT_S = 20.0


class Engine:
    """One bridge, `own`. `gate`: a list is asked of the engine, and answered once it is set."""

    def __init__(self) -> None:
        self.members = {"app": ContainerInfo("app", "app", "running", {}, addresses=("10.0.0.1",))}
        self.ended: set[str] = set()
        """Who is on it still, and does not run."""
        self.lists = 0
        self.broken: Exception | None = None
        self.asked, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def running_networks(self) -> list[Running]:
        self.lists += 1
        rows = [Running(key, "own", ("own",)) for key in self.members.keys() - self.ended]
        self.asked.set()
        assert self.gate.wait(TIMEOUT_S)
        if self.broken is not None:
            raise self.broken
        return rows

    def network(self, network_id: str) -> Network:
        return Network(network_id, "bridge", dict.fromkeys(self.members, ("10.0.0.1",)))

    def inspect(self, key: str) -> ContainerInfo:
        return self.members[key]


class World:
    """The supervisor, as far as it is needed, with one session."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.pool = ThreadPoolExecutor(2)
        self.engines = cast(
            Any, SimpleNamespace(get=lambda _endpoint: SimpleNamespace(engine=self.engine, pool=self.pool))
        )
        self.sent: list[str | None] = []
        plane = SimpleNamespace(submit=self._submit)
        self.direct = DirectSwitch("ses-1", cast(Any, plane))
        record = SimpleNamespace(container_id="app", container_name="app", endpoint=ENDPOINT)
        self.sessions = cast(Any, {"ses-1": SimpleNamespace(direct=self.direct, record=record)})
        self.tasks: set[asyncio.Task[None]] = set()
        self.watch = NetworkWatch(self)
        self._changed = asyncio.Event()

    def _submit(self, command: MuxDirect) -> None:
        self.sent.append(command.address)
        self._changed.set()

    def spawn(self, work: object, name: str) -> None:
        task = asyncio.ensure_future(cast(Any, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def begin(self) -> None:
        """An agent has been started."""
        self.direct.begin(ENDPOINT, self.engine.members["app"], None)
        self.watch.on_session_changed()

    def join(self, key: str, **about: Any) -> None:
        self.engine.members[key] = ContainerInfo(key, key, "running", {}, **about)

    def event(self, action: str, key: str = "", network_id: str | None = None) -> None:
        self.watch.on_event(ENDPOINT, ContainerEvent(action, key, key, {}, network_id))

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not true():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.02)

    async def until_on(self) -> None:
        await self.until(lambda: str(self.direct) == "on")


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[World]:
    """One session whose path is on."""
    one = World()
    try:
        one.begin()
        await one.until_on()
        yield one
    finally:
        for task in list(one.tasks):
            task.cancel()
        one.engine.gate.set()
        one.pool.shutdown()


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_watch, "PAUSE_S", 0.05)


@in_loop
async def test_agent_that_starts_has_the_path_once_its_networks_were_looked_at() -> None:
    async with started() as world:
        assert world.sent == [None, "10.0.0.1"], "not before"
        assert world.direct.to_json() == {"on": True, "reason": None}


@in_loop
async def test_newcomer_takes_the_path_away_before_the_engine_is_asked() -> None:
    """From docker's `connect` on, which comes before his first instruction."""
    async with started() as world:
        world.engine.gate.clear()
        world.join("evil")
        world.event("connect", "evil", "elsewhere")
        assert world.sent[-1] == "10.0.0.1", "another network"
        world.event("connect", "evil", "own")
        assert world.sent[-1] is None
        assert "been looked at yet" in str(world.direct)
        world.engine.gate.set()
        await world.until(lambda: "evil shares the network own" in str(world.direct))
        del world.engine.members["evil"]
        world.event("disconnect", "evil", "own")
        await world.until_on()


@in_loop
async def test_newcomer_during_a_look_is_not_overlooked() -> None:
    """The answer that is on its way does not know him."""
    async with started() as world:
        world.engine.asked.clear()
        world.engine.gate.clear()
        world.event("start", "somebody")
        await world.until(world.engine.asked.is_set)
        world.join("evil")
        world.event("connect", "evil", "own")
        sent = len(world.sent)
        world.engine.gate.set()
        await world.until(lambda: "evil shares" in str(world.direct))
        assert set(world.sent[sent:]) <= {None}, "on for a moment"


@in_loop
async def test_harmless_newcomer_takes_the_path_away_for_a_moment() -> None:
    async with started() as world:
        world.join("harmless", may_forge=False)
        world.event("connect", "harmless", "own")
        await world.until_on()
        assert world.sent == [None, "10.0.0.1", None, "10.0.0.1"]


@pytest.mark.parametrize("last", ["die", "remove"])
@in_loop
async def test_ended_container_counts_until_it_has_left_the_network(last: str) -> None:
    """Podman's order: `die`, off the network, perhaps `remove`, and no `disconnect`."""
    async with started() as world:
        world.join("other")
        world.event("start", "other")
        await world.until(lambda: "other shares" in str(world.direct))
        lists = world.engine.lists
        world.engine.ended.add("other")
        world.event("die", "other")
        await world.until(lambda: world.engine.lists >= lists + 2)
        assert "other shares" in str(world.direct), "it could still be one that starts"
        del world.engine.members["other"]
        if last == "remove":
            world.event("remove", "other")
        await world.until_on()
        await world.until(lambda: not world.tasks)


@in_loop
async def test_event_does_not_wait_for_the_next_of_the_looks_for_who_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as world:
        monkeypatch.setattr(network_watch, "delay_s", lambda *_args, **_more: 10 * TIMEOUT_S)
        world.join("other")
        world.engine.ended.add("other")
        world.event("connect", "other", "own")
        await world.until(lambda: "other shares" in str(world.direct))
        await asyncio.sleep(2 * network_watch.PAUSE_S)
        del world.engine.members["other"]
        world.event("remove", "other")
        await world.until_on()
        world.join("other")
        world.event("connect", "other", "own")
        await world.until(lambda: "other shares" in str(world.direct))
        world.direct.end()
        world.watch.on_session_changed()
        await world.until(lambda: not world.tasks)


@in_loop
async def test_thousands_of_events_are_a_few_looks() -> None:
    async with started() as world:
        before = world.engine.lists
        for number in range(5000):
            world.event("start", f"one{number}")
            world.event("die", f"one{number}")
            world.event("connect", f"one{number}", "elsewhere")
            if number % 500 == 0:
                await asyncio.sleep(0)
        await world.until(lambda: not world.tasks)
        assert world.engine.lists - before <= 3


FAULTS = {"no answer": EngineUnreachableError("it does not answer"), "a fault": KeyError("it does not answer")}


@pytest.mark.parametrize("fault", FAULTS)
@in_loop
async def test_engine_that_does_not_answer_leaves_no_path(fault: str) -> None:
    async with started() as world:
        world.engine.broken = FAULTS[fault]
        world.event("start", "somebody")
        await world.until(lambda: "does not answer" in str(world.direct))
        assert world.sent[-1] is None
        world.engine.broken = None
        await world.until_on()


@in_loop
async def test_gap_in_the_events_is_looked_behind() -> None:
    async with started() as world:
        world.join("missed")
        world.watch.on_event(ENDPOINT, None)
        await world.until(lambda: "missed shares" in str(world.direct))


@in_loop
async def test_direct_set_by_the_user_needs_no_look() -> None:
    async with started() as world:
        for wanted, expected in ((True, "on"), (False, "off: the setting direct is false")):
            world.direct.begin(ENDPOINT, world.engine.members["app"], wanted)
            world.watch.on_session_changed()
            world.event("connect", "evil", "own")
            await asyncio.sleep(0)
            assert str(world.direct) == expected
        world.direct.end()
        assert world.direct.to_json() is None
        assert world.engine.lists == 1, "the first, of the beginning"

"""One session in a world of its own: a fake engine, a real data plane, real host ports, and a loop to live on."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from autoforward.config.session_record import SessionOptions, SessionRecord
from autoforward.core.model import Identity
from autoforward.dataplane.messages import PlaneEvent
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.supervisor.session.session import Session
from autoforward.supervisor.session.shared import LIMITS, SessionLimits, SessionServices
from tests.support.containers import eventually
from tests.support.fake_engine import FakeEngine, Process
from tests.support.harness import LOOPBACK, TIMEOUT_S, Bench, in_loop

RECORD = SessionRecord(
    "ses-00000001",
    Identity("unix:///engine", "name:web"),
    FakeEngine.endpoint,
    "c0ffee00c0ffee00",
    "web",
    "web",
    # Else every new port would wait for its process to be known.
    options=SessionOptions(default_exclude=False),
)


class World(Bench):
    """One session, its fake engine, and the way of the data plane's notices to it."""

    def __init__(self, folder: Path, engine: FakeEngine, record: SessionRecord, limits: SessionLimits) -> None:
        super().__init__(folder, self._hand_over)
        self.publisher.connects = False
        self.engine = engine
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="engine")
        self.ended: list[str] = []
        self._loop = asyncio.get_running_loop()
        services = SessionServices(self.plane, self.allocator, self.publisher, self.disk, self.pool, limits=limits)
        self.session = Session(
            record, cast(Engine, engine), services, lambda _session, reason: self.ended.append(reason), lambda: None
        )

    def _hand_over(self, notice: PlaneEvent) -> None:
        self._loop.call_soon_threadsafe(self._on_notice, notice)

    def _on_notice(self, notice: PlaneEvent) -> None:
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
        [row] = [row for row in self.session.forwarder.forwards if row.wanted.key.container_port == container_port]
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

    def __call__(self, record: SessionRecord = RECORD, limits: SessionLimits = LIMITS, **engine: Any) -> World:
        return World(self._folder, FakeEngine(**engine), record, limits)


def closing(test: Any) -> Any:
    """The test's world is closed on its loop, however the test ends."""

    async def run(world: Worlds, **fixtures: Any) -> None:
        made: list[World] = []

        def make(record: SessionRecord = RECORD, **options: Any) -> World:
            made.append(world(record, **options))
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

"""An engine that is away is tried with backoff, and at once when something says that it is worth a try."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from autoforward.core.errors import EngineUnreachableError
from autoforward.core.model import EngineEndpoint
from autoforward.engine import pool
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.engine.pool import EngineFollower
from tests.support.harness import TIMEOUT_S, in_loop

pytestmark = pytest.mark.local


class EventfulEngine:
    """Its stream of events: away, or open until it is closed."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "sock"
        self.endpoint = EngineEndpoint(f"unix://{self.socket}", "a test")
        self.is_away = True
        self.asked: queue.Queue[bool] = queue.Queue()
        self.said: queue.Queue[ContainerEvent | None] = queue.Queue()

    def events(self, on_open: Callable[[Any], None]) -> Iterator[ContainerEvent]:
        self.asked.put(not self.is_away)
        if self.is_away:
            raise EngineUnreachableError("the engine does not answer")
        on_open(self)
        while (event := self.said.get(timeout=TIMEOUT_S)) is not None:
            yield event

    def close(self) -> None:
        """The stream's: it ends."""
        self.said.put(None)


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventfulEngine:
    """One whose backoff would not end within a test."""
    monkeypatch.setattr(pool, "delay_s", lambda _failures, **_how: 3600.0)
    return EventfulEngine(tmp_path)


async def heard_by(engine: EventfulEngine, hint: Callable[[EventfulEngine, EngineFollower], None]) -> None:
    """The hint makes it ask again, and whoever depends on it is told to look for himself."""
    heard: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
    follower = EngineFollower(cast(Engine, engine), heard.put_nowait, lambda: None)
    try:
        assert not await asyncio.to_thread(engine.asked.get, timeout=TIMEOUT_S)
        engine.is_away = False
        hint(engine, follower)
        assert await asyncio.to_thread(engine.asked.get, timeout=TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            assert await heard.get() is None
    finally:
        follower.close()


@in_loop
async def test_a_socket_that_is_new_is_tried_at_once(away: EventfulEngine) -> None:
    await heard_by(away, lambda engine, _follower: engine.socket.touch())


@in_loop
async def test_after_a_sleep_of_the_machine_it_is_tried_at_once(away: EventfulEngine) -> None:
    await heard_by(away, lambda _engine, follower: follower.reconnect())


@in_loop
async def test_a_stream_that_may_be_dead_begins_anew_after_a_sleep(away: EventfulEngine) -> None:
    away.is_away = False
    heard: asyncio.Queue[ContainerEvent | None] = asyncio.Queue()
    follower = EngineFollower(cast(Engine, away), heard.put_nowait, lambda: None)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert await heard.get() is None
            follower.reconnect()
            assert await heard.get() is None, "open once more"
    finally:
        follower.close()

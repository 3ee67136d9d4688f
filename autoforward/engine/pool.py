"""The engines in use: one `Engine` and one event follower per endpoint, while sessions need it."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoforward.core.backoff import delay_s
from autoforward.core.errors import AutoforwardError
from autoforward.core.model import EngineEndpoint
from autoforward.engine.client import ContainerEvent, Engine

log = logging.getLogger(__name__)

ENGINE_THREADS = 8
"""Processes being started in containers at once: 20 take 1.6 s, more only delay all of them."""

LINK_TIMEOUT_S = 2.0
"""After a sleep of the machine: how long a remote engine has to answer on the existing login."""

SOCKET_POLL_S = 0.1
"""While a local engine is away: how often its socket file is checked. A new one is tried at once."""


class EngineFollower:
    """Follows the engine's events in its own thread.

    `on_event` is called on the control loop; with None after every new connection: events may have been missed, so
    listeners must check for themselves. `on_lost` is called there once after each lost connection, also if the first
    one fails.
    """

    def __init__(
        self, engine: Engine, on_event: Callable[[ContainerEvent | None], None], on_lost: Callable[[], None]
    ) -> None:
        self.engine = engine
        self._on_event = on_event
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._retry_now = threading.Event()
        path = engine.endpoint.socket_path
        self._socket = Path(path) if path is not None else None
        self._stream: Any = None
        engine.on_up = self._retry_now.set
        self._is_heard = True  # until proven otherwise
        self._thread = threading.Thread(target=self._run, name=f"events of {engine.endpoint.host}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent; does not wait: it may be connecting."""
        self._stopping.set()
        self._retry_now.set()
        self._close_stream()

    def reconnect(self) -> None:
        """Start a new stream: the old one may be dead without notice."""
        self._retry_now.set()
        self._close_stream()

    def _close_stream(self) -> None:
        stream = self._stream
        if stream is not None:
            try:
                stream.close()
            except (OSError, ValueError, AttributeError) as error:
                log.debug("closing the event stream of %s: %s", self.engine, error)

    def _opened(self, stream: Any) -> None:
        self._stream = stream
        self._is_heard = True
        if self._stopping.is_set():
            self._close_stream()
        self._emit(None)

    def _emit(self, event: ContainerEvent | None) -> None:
        if not self._stopping.is_set():
            self._loop.call_soon_threadsafe(self._on_event, event)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                for event in self.engine.events(self._opened):
                    failures = 0
                    self._emit(event)
                    self._retry_now.clear()
                log.info("the event stream of %s ended", self.engine.endpoint.host)
            except (AutoforwardError, OSError, ValueError, AttributeError) as error:
                # A stream closed from another thread raises any of these.
                if not self._stopping.is_set():
                    log.info("the event stream of %s broke: %s", self.engine.endpoint.host, error)
            failures += 1
            if self._is_heard and not self._stopping.is_set():
                self._is_heard = False
                self._loop.call_soon_threadsafe(self._on_lost)
            self._wait(delay_s(failures, local=self._socket is not None, chance=random.random()))

    def _wait(self, seconds: float) -> None:
        """Wait until then, or until a retry makes sense."""
        deadline_s = time.monotonic() + seconds
        before = _file_at(self._socket)
        while not self._stopping.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            if self._retry_now.wait(left_s if self._socket is None else min(left_s, SOCKET_POLL_S)):
                self._retry_now.clear()
                return
            now = _file_at(self._socket)
            if now is not None and now != before:
                return


def _file_at(path: Path | None) -> tuple[int, int, int] | None:
    """The identity of the socket file; changes when the engine restarts."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@dataclass(frozen=True, slots=True)
class EngineInUse:
    """`pool` runs blocking calls on this engine, so that one that hangs delays no other engine."""

    follower: EngineFollower
    pool: ThreadPoolExecutor

    @property
    def engine(self) -> Engine:
        return self.follower.engine


class EnginePool:
    """Engines by `EngineEndpoint.key`. `on_event(endpoint, event)` and `on_lost(endpoint)` are called on the control loop."""

    def __init__(
        self,
        on_event: Callable[[EngineEndpoint, ContainerEvent | None], None],
        on_lost: Callable[[EngineEndpoint], None],
    ) -> None:
        self._on_event = on_event
        self._on_lost = on_lost
        self._in_use: dict[object, EngineInUse] = {}

    def get(self, endpoint: EngineEndpoint) -> EngineInUse:
        found = self._in_use.get(endpoint.key)
        if found is None:
            follower = EngineFollower(
                Engine(endpoint), lambda event: self._on_event(endpoint, event), lambda: self._on_lost(endpoint)
            )
            pool = ThreadPoolExecutor(ENGINE_THREADS, thread_name_prefix="autoforward-engine")
            found = self._in_use[endpoint.key] = EngineInUse(follower, pool)
        return found

    def renew(self, endpoint: EngineEndpoint) -> None:
        """A command has named this engine again: the user's ssh agent may have changed."""
        if (found := self._in_use.get(endpoint.key)) is not None:
            found.engine.renew(endpoint)

    def keep_only(self, keys: Collection[object]) -> None:
        for key in set(self._in_use) - set(keys):
            ended = self._in_use.pop(key)
            ended.follower.close()
            ended.pool.shutdown(wait=False, cancel_futures=True)
            # Waits for ssh to end, so not on the control loop.
            threading.Thread(target=ended.engine.close, name=f"end of {ended.engine}", daemon=True).start()

    def reconnect(self) -> None:
        """Restart all event streams over transports that answer; listeners then check for themselves."""
        for one in self._in_use.values():
            one.pool.submit(one.engine.check_link, LINK_TIMEOUT_S)
            one.follower.reconnect()

    def close(self) -> None:
        self.keep_only(())

    @property
    def endpoints(self) -> list[EngineEndpoint]:
        return [one.engine.endpoint for one in self._in_use.values()]

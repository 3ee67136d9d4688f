"""Deliver events: the log numbers and writes them in its own thread, then every subscriber gets them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from autoforward.state.event_log import EventLog, PortEvent

log = logging.getLogger(__name__)

MAX_BACKLOG = 10_000
"""Events that a subscriber may be behind before it is cut off; it can resume with `--since`."""


class Subscription:
    """A subscriber's queue; `get` returns None after a cut-off or at the supervisor's end."""

    def __init__(self, accepts: Callable[[PortEvent], bool]) -> None:
        self._accepts = accepts
        self._queue: asyncio.Queue[PortEvent | None] = asyncio.Queue()
        self._ended = False

    def offer(self, event: PortEvent) -> None:
        if self._ended or not self._accepts(event):
            return
        if self._queue.qsize() >= MAX_BACKLOG:
            self.end()
        else:
            self._queue.put_nowait(event)

    def end(self) -> None:
        self._ended = True
        self._queue.put_nowait(None)

    async def get(self) -> PortEvent | None:
        return await self._queue.get()

    def drain(self) -> list[PortEvent]:
        """The queued events, without waiting."""
        events = []
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if event is not None:
                events.append(event)
        return events


def log_line(event: PortEvent) -> str:
    """The event as a log line: `web fwd-1a2b3c4d forwarded 127.0.0.1:3001 -> 3000 (host port 3000 is in use)`."""
    parts = [event.container_name or "-", event.id or "-", event.event]
    if event.container_port is not None:
        remote = f"{event.container_host}:{event.container_port}" if event.container_host else f"{event.container_port}"
        parts.append(remote if event.host_port is None else f"{event.host_ip}:{event.host_port} -> {remote}")
    if event.reason:
        parts.append(f"({event.reason})")
    return " ".join(parts)


class EventHub:
    """`publish` keeps the order of calls: one thread writes, then subscribers and `hear` get the written event."""

    def __init__(self, log: EventLog, hear: Callable[[PortEvent], None] = lambda _event: None) -> None:
        self._log = log
        self._hear = hear
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="autoforward-events")
        self._subscriptions: set[Subscription] = set()

    @property
    def last_seq(self) -> int:
        return self._log.last_seq

    async def publish(self, event: PortEvent) -> PortEvent:
        written = await asyncio.get_running_loop().run_in_executor(self._thread, self._log.append, event)
        log.info("%s", log_line(written))
        for subscription in self._subscriptions:
            subscription.offer(written)
        self._hear(written)
        return written

    async def flush(self) -> None:
        """Retry unwritten events."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._log.flush)

    @contextlib.contextmanager
    def subscribe(self, accepts: Callable[[PortEvent], bool]) -> Iterator[Subscription]:
        subscription = Subscription(accepts)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """No more events: subscribers reach their end. Blocks until the last line is written."""
        for subscription in self._subscriptions:
            subscription.end()
        self._thread.shutdown()

"""Follow the supervisor while a page is open, over the control socket like `events --follow` and `list`.

Each message is a complete picture, not a change: a slow or new viewer misses nothing, and nothing is queued for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from autoforward.control.protocol import READ_BYTES, Message, MessageDecoder, encode
from autoforward.control.start import connect_to_supervisor
from autoforward.core.errors import AutoforwardError
from autoforward.state.folder import StatePaths
from autoforward.ui.page_state import Picture, picture_of

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How often counters are polled, and a missing supervisor is looked for."""

GAP_S = 0.1
"""Minimum between two pictures: a hundred events at once cause one."""

ANSWER_TIMEOUT_S = 20.0
"""`list` itself waits up to 5 s for sessions that are being restored."""


class NoSupervisorError(AutoforwardError):
    """No supervisor runs, or it ended during the request."""


class Feed:
    """One for all viewers. `restorable` says whether a supervisor would have sessions to restore."""

    def __init__(self, paths: StatePaths, restorable: Callable[[], bool]) -> None:
        self._paths = paths
        self._restorable = restorable
        self._picture: Picture | None = None
        self._changed = asyncio.Condition()
        self._viewers = 0
        self._following: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Feed of {self._paths.home}, {self._viewers} viewers>"

    @contextlib.asynccontextmanager
    async def viewing(self) -> AsyncIterator[None]:
        """While a viewer is inside, the supervisor is followed. The first `next` returns a fresh picture."""
        self._viewers += 1
        if self._following is None:
            self._picture = None
            self._following = asyncio.create_task(self._follow_forever(), name="following the supervisor")
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers and self._following is not None:
                following, self._following = self._following, None
                following.cancel()
                await asyncio.wait([following])

    async def next(self, seen: Picture | None, timeout_s: float) -> Picture | None:
        """A picture that differs from `seen`, as soon as there is one; None after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._picture is not None and self._picture is not seen)
                return self._picture
        return None

    async def ask(self, request: Mapping[str, Any]) -> Message:
        """The result of one request. Raises NoSupervisorError, and AutoforwardError for the supervisor's error."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._request(request) as reader:
                decoder = MessageDecoder()
                while data := await reader.read(READ_BYTES):
                    decoder.feed(data)
                    if (result := decoder.next_result()) is not None:
                        return result
        except TimeoutError as error:
            raise AutoforwardError("the supervisor does not answer") from error
        except ConnectionError as error:
            raise NoSupervisorError(f"cannot hear the supervisor: {error}") from error
        raise NoSupervisorError("the supervisor ended before it had answered")

    @contextlib.asynccontextmanager
    async def _request(self, request: Mapping[str, Any]) -> AsyncIterator[asyncio.StreamReader]:
        sock = await asyncio.to_thread(connect_to_supervisor, self._paths)
        if sock is None:
            raise NoSupervisorError("no supervisor is running", hint="`autoforward attach` starts one")
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            writer.write(encode(request))
            await writer.drain()
            yield reader
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _follow_forever(self) -> None:
        while True:
            try:
                await self._follow()
            except (AutoforwardError, ConnectionError) as error:
                log.debug("not following: %s", error)
            await self._show(Picture(running=False, restorable=await self._is_restorable()))
            await asyncio.sleep(TICK_S)

    async def _is_restorable(self) -> bool:
        try:
            return await asyncio.to_thread(self._restorable)
        except AutoforwardError as error:
            log.debug("nothing can be restored: %s", error)
            return False

    async def _follow(self) -> None:
        """Until the supervisor ends. It subscribes before the first list, so it misses nothing."""
        changed = asyncio.Event()
        async with self._request({"op": "events", "replay": False}) as reader:
            reading = asyncio.create_task(_read_events(reader, changed), name="hearing events")
            try:
                while not reading.done():
                    changed.clear()
                    listed = await self.ask({"op": "list"})
                    status = await self.ask({"op": "status"})
                    await self._show(picture_of(listed["rows"], status["sessions"]))
                    await asyncio.sleep(GAP_S)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), TICK_S - GAP_S)
            finally:
                reading.cancel()
                await asyncio.wait([reading])

    async def _show(self, picture: Picture) -> None:
        if picture == self._picture:
            return
        async with self._changed:
            self._picture = picture
            self._changed.notify_all()


async def _read_events(reader: asyncio.StreamReader, changed: asyncio.Event) -> None:
    """Sets `changed` after every message, and at EOF."""
    try:
        while await reader.read(READ_BYTES):
            changed.set()
    finally:
        changed.set()

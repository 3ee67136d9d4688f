"""An actor: one task that processes its inbox sequentially, so that nothing changes between deciding and acting.

Events go into the inbox with `post`, others' commands with `execute`, which returns their result. The actor's task
reads with `next_item`. `ending` is set from outside (or by the task itself) and interrupts every wait. The inbox has
one slot per kind of item: the newest of a repeated item replaces the last.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from autoforward.core.errors import AutoforwardError, TargetError

PATIENCE_S = 5.0
"""A slower blocking call is reported: what it calls may hang."""

Item = TypeVar("Item")
T = TypeVar("T")

FAULT = "an internal error, see the log"
"""The reason for an end that no command requested."""


class Ending(Exception):  # noqa: N818  # control flow, not an error
    """The actor must end."""


class Restart(Exception):  # noqa: N818  # control flow, not an error
    """A command changed the basis of the actor's task, which must start over."""


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """A command was executed: earlier state, and the timeout derived from it, may be stale."""


@dataclass(frozen=True, slots=True)
class _Command:
    action: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]


class Actor(Generic[Item]):
    """`place_of` returns an item's slot: it replaces the item that waits there.

    `on_slow` is awaited, in the actor's turn, when a blocking call takes longer than `PATIENCE_S`; once per call.
    """

    def __init__(
        self,
        name: str,
        place_of: Callable[[Item], Hashable],
        on_slow: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self._place_of = place_of
        self._on_slow = on_slow
        self.ending = asyncio.Event()
        self.end_reason = ""
        self._inbox: OrderedDict[Hashable, Item | _Command] = OrderedDict()
        self._wakeup = asyncio.Event()

    def post(self, item: Item) -> None:
        self._inbox[self._place_of(item)] = item
        self._wakeup.set()

    def end(self, reason: str) -> None:
        """Request the end; the first reason counts."""
        self.end_reason = self.end_reason or reason
        self.ending.set()
        self._wakeup.set()

    async def execute(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run `action` in the actor's turn. Raises what it raises; TargetError if the actor ends first."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox[done] = _Command(action, done)
        self._wakeup.set()
        ended = asyncio.ensure_future(self.ending.wait())
        waiting: list[asyncio.Future[Any]] = [done, ended]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if not done.done():
            done.cancel()
            raise TargetError(f"the session of {self.name} ended: {self.end_reason}")
        return done.result()

    async def next_item(self, timeout_s: float | None) -> Item | CarriedOut | None:
        """The next item, None after the timeout. Executes commands. Raises Ending, Restart."""
        await asyncio.sleep(0)  # yield even if an item is waiting
        try:
            async with asyncio.timeout(timeout_s):
                while not self._inbox and not self.ending.is_set():
                    self._wakeup.clear()
                    await self._wakeup.wait()
        except TimeoutError:
            return None
        if self.ending.is_set():
            raise Ending
        _place, item = self._inbox.popitem(last=False)
        if not isinstance(item, _Command):
            return item
        await self._carry_out(item)
        return CarriedOut()

    async def _carry_out(self, command: _Command) -> None:
        if command.done.done():  # the caller has gone
            return
        try:
            result = await command.action()
        except Restart:
            if not command.done.done():
                command.done.set_result(None)
            raise
        except AutoforwardError as error:
            if not command.done.done():
                command.done.set_exception(error)
        else:
            if not command.done.done():
                command.done.set_result(result)

    async def call(self, pool: Executor, job: Callable[[], T], discard: Callable[[T], None] | None = None) -> T:
        """Run a blocking job in the pool. An end does not wait for it: `discard` then gets its result."""
        job_done: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(pool, job)
        ending = asyncio.ensure_future(self.ending.wait())
        waiting: list[asyncio.Future[Any]] = [job_done, ending]
        in_time, _ = await asyncio.wait(waiting, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if not in_time:
            if self._on_slow is not None:
                await self._on_slow()
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if job_done.done():
            return job_done.result()

        def came_late(late: asyncio.Future[T]) -> None:
            if not late.cancelled() and late.exception() is None and discard is not None:
                discard(late.result())

        job_done.add_done_callback(came_late)
        raise Ending

"""An actor: one task that takes what comes in one after the other, so that nothing changes between deciding and doing.

Things that happen go into the inbox with `tell`; commands of others with `execute`, which returns their result. The
actor's task reads with `next_item`. `ending` is set from outside (or by the task itself) and interrupts every wait.
The inbox has one place for each kind of thing: of what happens again and again the newest counts, and no more is held.
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
"""A blocking call that takes longer is worth a word: what it asks may hang."""

Item = TypeVar("Item")
T = TypeVar("T")

FAULT = "an internal error, see the log"
"""The reason of an end that no command asked for."""


class Ending(Exception):  # noqa: N818  # control flow, not an error
    """The actor is to end."""


class Restart(Exception):  # noqa: N818  # control flow, not an error
    """A command changed what the actor's task is based on: it has to begin again."""


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """A command was carried out: what was true before it need not be any more, nor what the timeout came from."""


@dataclass(frozen=True, slots=True)
class _Command:
    action: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]


class Actor(Generic[Item]):
    """`place_of` says which place an item has: it replaces the one that waits there.

    `on_slow` is awaited, in the actor's turn, when a blocking call takes longer than `PATIENCE_S`; once a call.
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
        self._news = asyncio.Event()

    def tell(self, item: Item) -> None:
        self._inbox[self._place_of(item)] = item
        self._news.set()

    def end(self, reason: str) -> None:
        """Ask it to end; the first reason counts."""
        self.end_reason = self.end_reason or reason
        self.ending.set()
        self._news.set()

    async def execute(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run `action` in the actor's turn. Raises what it raises; TargetError when the actor ends first."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox[done] = _Command(action, done)
        self._news.set()
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
        """What comes next, None after the timeout. Commands are carried out here. Raises Ending, Restart."""
        await asyncio.sleep(0)  # also where there is always something next
        try:
            async with asyncio.timeout(timeout_s):
                while not self._inbox and not self.ending.is_set():
                    self._news.clear()
                    await self._news.wait()
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
        """Run a blocking job in the pool. The end does not wait for it: what it returns then is given to `discard`."""
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

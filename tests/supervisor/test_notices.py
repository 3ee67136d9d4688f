"""What the data plane tells control: in order, some at a time, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from autoforward.state.folder import StatePaths
from autoforward.supervisor.notices import MANY_NOTICES, TURN_NOTICES, NoticeQueue
from autoforward.supervisor.supervisor import Supervisor
from tests.support.harness import in_loop

pytestmark = pytest.mark.unit

MANY = 20 * MANY_NOTICES


def from_a_thread(queue: NoticeQueue, numbers: range) -> threading.Thread:
    thread = threading.Thread(target=lambda: [queue.put(cast(Any, number)) for number in numbers])
    thread.start()
    return thread


@in_loop
async def test_all_come_in_order_and_others_have_their_turn_between() -> None:
    """All that had come in the meantime was one turn of the loop: 30 s, where the machine was busy."""
    loop = asyncio.get_running_loop()
    taken: list[int] = []
    queue = NoticeQueue(loop, cast(Any, taken.append))
    from_a_thread(queue, range(MANY)).join()
    assert queue.is_long()
    turns = []
    while len(taken) < MANY:
        await asyncio.sleep(0)
        turns.append(len(taken))
    assert taken == list(range(MANY))
    assert max(after - before for before, after in zip([0, *turns], turns, strict=False)) <= TURN_NOTICES
    assert not queue.is_long()
    from_a_thread(queue, range(MANY, MANY + 1)).join()
    await asyncio.sleep(0)
    assert taken[-1] == MANY


@in_loop
async def test_one_that_fails_is_the_only_one_lost() -> None:
    loop = asyncio.get_running_loop()
    failed: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: failed.append(context["exception"]))
    taken: list[int] = []

    def take(number: int) -> None:
        if number == 1:
            raise ValueError
        taken.append(number)

    queue = NoticeQueue(loop, cast(Any, take))
    from_a_thread(queue, range(3)).join()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert taken == [0, 2]
    assert [type(error) for error in failed] == [ValueError]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python says that the pipe is full
@in_loop
async def test_a_signal_counts_whatever_else_wakes_the_loop(tmp_path: Path) -> None:
    """It came by a byte in the pipe that wakes the loop: where that was full, the supervisor never ended."""
    loop = asyncio.get_running_loop()
    supervisor = Supervisor(StatePaths(tmp_path), lambda _made: {})
    before = signal.getsignal(signal.SIGUSR1)
    try:
        supervisor._heed(signal.SIGUSR1, loop)
        for _ in range(1000):  # as many as fit
            loop.call_soon_threadsafe(lambda: None)
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(5):
            await supervisor._stop.wait()
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, before)
    assert supervisor._stop_reason == "signal SIGUSR1"


def test_nothing_is_raised_where_the_loop_has_closed() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    NoticeQueue(loop, cast(Any, None)).put(cast(Any, 1))

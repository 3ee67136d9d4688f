"""What a container that never stops may cost control: its watcher's words, its processes' names, its ports, its restarts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from typing import Any, cast

import pytest

from autoforward.core.budget import ATTEMPTS, EVENTS, LOG_LINES, PLANS, WATCHER_FRAMES, WATCHER_LINES, Limit
from autoforward.dataplane.messages import RelayEnded
from autoforward.detection.proc_net import SocketTable
from autoforward.engine.client import ContainerEvent
from autoforward.engine.exec_stream import STDERR, STDOUT
from autoforward.lanes import shell_watcher as detector_module
from autoforward.lanes.shell_watcher import TURN_FRAMES, TURN_LINES, Detector
from autoforward.lanes.watcher_protocol import Frame
from autoforward.supervisor.session import session as session_module
from autoforward.supervisor.session.actor import Actor
from autoforward.supervisor.session.lane_choice import Item, Lost, NeighboursChanged, ProcessesKnown, place_of
from autoforward.supervisor.session.metering import SparingLog
from autoforward.supervisor.session.shared import SessionLimits
from tests.support.containers import eventually
from tests.support.fake_engine import Process
from tests.support.harness import free_port, in_loop
from tests.support.world import RECORD, closing

pytestmark = pytest.mark.local

HELLO = b"AF hello 1 pid=7 filter=grep interval=0.5\n"


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "delay_s", lambda _failures, **_how: 0.01)


# The inbox.


@in_loop
async def test_an_inbox_holds_the_newest_of_each_kind_whatever_comes() -> None:
    """956,000 snapshots of a shell watcher were taken one after the other, for a minute after the container was gone."""
    actor: Actor[Item] = Actor("web", place_of)
    watch = cast(Any, object())
    for number in range(10_000):
        actor.post(Frame(number, SocketTable((), 0, False)))
        actor.post(ProcessesKnown())
        actor.post(NeighboursChanged())
        actor.post(Lost(watch, "it ended"))
        for action in ("pause", "unpause", "rename", "start", "die", "destroy"):
            actor.post(ContainerEvent(action, "c0ffee", f"web{number}", {}))
    heard: list[Item] = []
    while (item := await actor.next_item(0.0)) is not None:
        heard.append(cast(Item, item))
    assert [place_of(item) for item in heard if not isinstance(item, Lost)] == [
        "Frame",
        "ProcessesKnown",
        "NeighboursChanged",
        "pause",
        "rename",
        "life",
    ]
    assert len(heard) == 7
    assert cast(Frame, heard[0]).number == 9999
    assert [item.action for item in heard if isinstance(item, ContainerEvent)] == ["unpause", "rename", "destroy"]


@in_loop
async def test_commands_are_all_carried_out_and_others_have_their_turn() -> None:
    actor: Actor[Item] = Actor("web", place_of)
    turns: list[str] = []

    async def act() -> None:
        turns.append("command")

    async def other() -> None:
        while len(turns) < 10:
            turns.append("other")
            await asyncio.sleep(0)

    commands = [asyncio.create_task(actor.execute(act)) for _ in range(5)]
    beside = asyncio.create_task(other())
    await asyncio.sleep(0)
    for _ in range(5):
        await actor.next_item(1.0)
    await asyncio.gather(*commands, beside)
    assert turns.count("command") == 5
    assert turns.index("other") < turns.index("command") < 8


# The shell watcher.


class Poured:
    """A watcher's stream that has a quarter of a megabyte of the same words whenever it is read."""

    def __init__(self, stream: int, one: bytes) -> None:
        self._stream = stream
        self._one = one
        self._number = 0
        self.reads = 0
        self.open = True

    def fileno(self) -> int:
        return 9 if self.open else -1

    def recv(self) -> list[tuple[int, bytes]]:
        self.reads += 1
        if self._stream == STDERR:
            return [(STDERR, self._one * (256 * 1024 // len(self._one)))]
        said = b"" if self._number else HELLO
        pieces = [b"AF begin %d\nAF end %d\n" % (n, n) for n in range(self._number + 1, self._number + 10_001)]
        self._number += 10_000
        return [(STDOUT, said + b"".join(pieces))]

    def send(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        self.open = False

    def shutdown_write(self) -> None: ...


class Clock:
    """The control loop as far as a detector sees it, with a time of its own."""

    def __init__(self) -> None:
        self.now_s = self.began_s = asyncio.get_running_loop().time()
        self.reader: Any = None
        self.due: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now_s

    def add_reader(self, _fd: int, reader: Any) -> None:
        self.reader = reader

    def remove_reader(self, _fd: int) -> None:
        self.reader = None

    def remove_writer(self, _fd: int) -> None: ...

    def call_later(self, delay_s: float, callback: Any) -> Any:
        self.due.append((self.now_s + delay_s, callback))
        return asyncio.get_running_loop().call_later(1000, int)

    def turn(self) -> None:
        if self.reader is not None:
            self.reader()
            self.now_s += 0.0001
            return
        at_s, callback = min(self.due, key=lambda one: one[0])
        self.due.remove((at_s, callback))
        self.now_s = max(self.now_s, at_s)
        callback()


@pytest.mark.parametrize(
    ("stream", "one", "limit"),
    [
        (STDOUT, b"", WATCHER_FRAMES),
        (STDERR, b"owner 1 1 x\n", WATCHER_LINES),
        (STDERR, b"pong 7\n", WATCHER_LINES),
        (STDERR, b"\n", WATCHER_LINES),
    ],
    ids=["frames", "owners", "pongs", "empty lines"],
)
@in_loop
async def test_a_watcher_that_never_stops_is_slowed_and_lost(stream: int, one: bytes, limit: Limit) -> None:
    clock, poured = Clock(), Poured(stream, one)
    told: list[Any] = []
    lost: list[str] = []
    detector = Detector(cast(Any, poured), told.append, told.append, lost.append, lambda: None)
    detector._loop = cast(Any, clock)
    detector._timer = None
    clock.add_reader(9, detector._read)
    while poured.open:
        before = len(told)
        clock.turn()
        assert len(told) - before <= (1 if stream == STDOUT else TURN_LINES)
    assert f"the watcher costs too much: it sends {limit.what} without end" in lost[0]
    assert detector.is_over_budget
    took_s = clock.now_s - clock.began_s
    assert limit.patience_s < took_s < 3 * limit.patience_s
    assert detector._parser._number <= limit.burst + limit.rate * took_s * 1.1 + TURN_FRAMES
    assert poured.reads < limit.burst + limit.rate * took_s * 1.1


@closing
async def test_the_session_has_failed_with_the_reason_and_is_tried_again(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(detector_module.budget, "WATCHER_FRAMES", replace(WATCHER_FRAMES, patience_s=0.3))
    monkeypatch.setattr(session_module, "LEFT_ALONE_S", 1.0)
    one = world()
    first = await one.begin(port)
    for again in (first, 2):
        watcher = first if isinstance(again, Process) else await one.engine.watcher(again)
        pouring = threading.Thread(target=pour, args=(watcher,), daemon=True)
        pouring.start()
        await asyncio.to_thread(pouring.join)
        await asyncio.to_thread(eventually, lambda: one.session.problem is not None)
        assert "costs too much: it sends snapshots without end" in one.session.problem
        assert one.session.state == "failed"
    assert one.statuses() == {port: "reconnecting"}
    third = await one.engine.watcher(3)
    third.listen(port)
    await one.publisher.wait_for("reconnected")
    assert one.session.state == "watching"
    said = [record.message for record in caplog.records if "costs too much" in record.message]
    assert len(said) == 1, "once"


def pour(watcher: Process) -> None:
    watcher.say(HELLO if watcher._number == 0 else b"")
    number = max(watcher._number, 1) if watcher._number else 0
    try:
        while True:
            pieces = [b"AF begin %d\nAF end %d\n" % (n, n) for n in range(number + 1, number + 1001)]
            number += 1000
            watcher.say(b"".join(pieces))
    except OSError:  # it is heard no more
        pass


# Names, ports, restarts.


@closing
async def test_processes_that_rename_themselves_are_told_of_at_the_pace_of_the_budget(
    world: Any, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """580 events a second were written; now none is left out that is true, and the newest name is the one that is told."""
    limit = replace(EVENTS, rate=5, burst=20)
    one = world(
        replace(RECORD, options=replace(RECORD.options, default_exclude=True)),
        limits=SessionLimits(slowed_s=0.1, events=limit),
    )
    watcher = await one.begin()
    watcher.listen(port)
    began_s = time.monotonic()
    for number in range(2000):
        watcher.say(f"owner 1000 12 server-{number}\n".encode(), stream=2)
        await asyncio.sleep(0)
    last = f"server-{number}"
    await asyncio.to_thread(eventually, lambda: one.publisher.events[-1].process == last)
    took_s = time.monotonic() - began_s
    assert len(one.publisher.events) <= limit.burst + limit.rate * took_s + 2
    assert len([record for record in caplog.records if "with a delay" in record.message]) == 1


@closing
async def test_ports_that_come_and_go_are_decided_on_at_the_pace_of_the_budget(
    world: Any, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = replace(PLANS, rate=5, burst=10)
    one = world(limits=SessionLimits(plans=limit))
    decided = 0
    plan = session_module.plan

    def counted(*arguments: Any) -> Any:
        nonlocal decided
        decided += 1
        return plan(*arguments)

    monkeypatch.setattr(session_module, "plan", counted)
    watcher = await one.begin(port)
    other = free_port()
    began_s = time.monotonic()
    for number in range(200):
        watcher.listen(port, *([other] if number % 2 else []))
        await asyncio.sleep(0.002)
    watcher.listen(port, other, other + 1)
    await asyncio.to_thread(eventually, lambda: set(one.statuses()) == {port, other, other + 1})
    assert decided <= limit.burst + limit.rate * (time.monotonic() - began_s) + 3


@closing
async def test_a_watch_that_begins_does_not_wait_for_all_that_was_told_before(world: Any, port: int) -> None:
    """A command may wait for it: `attach` hung for as long."""
    one = world(limits=SessionLimits(first_wait_s=0.2, events=replace(EVENTS, rate=0.01, burst=2)))
    watcher = await one.begin(port, free_port(), free_port())
    assert one.session._rest_s(time.monotonic()) > 100
    watcher.end()
    again = await one.engine.watcher(2)
    again.listen(port)
    await asyncio.to_thread(eventually, lambda: one.session._snapshot and len(one.session._snapshot) == 1)


@closing
async def test_a_container_that_restarts_all_the_time_is_looked_at_at_the_pace_of_the_budget(
    world: Any, port: int
) -> None:
    limit = replace(ATTEMPTS, rate=2, burst=5)
    one = world(limits=SessionLimits(attempts=limit))
    await one.begin(port)
    one.engine.change(state="exited")
    began_s = time.monotonic()
    one.engine.watchers[0].end()
    for _ in range(200):
        one.event("die")
        one.event("start")
        await asyncio.sleep(0.005)
    took_s = time.monotonic() - began_s
    assert one.engine.inspected <= 10 + limit.burst + limit.rate * took_s
    one.engine.change(state="running")
    one.event("start")
    watcher = await one.engine.watcher(2)
    watcher.listen(port)
    await one.publisher.wait_for("reconnected")


# The log.


def test_lines_over_the_budget_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    sparing = SparingLog(logging.getLogger("test"), 0.0)
    for _ in range(1000):
        sparing.info("%s was refused", "it", now_s=0.0)
    assert len(caplog.records) == LOG_LINES.burst + 1
    sparing.info("%s was refused", "it", now_s=60.0)
    left_out = 1000 - len(caplog.records) + 1
    assert caplog.records[-1].message == f"it was refused ({left_out} lines like this one were left out)"
    sparing.info("%s was refused", "it", now_s=60.0)
    assert caplog.records[-1].message == "it was refused"


@closing
async def test_refused_connections_without_end_do_not_fill_the_log(
    world: Any, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    one = world()
    await one.begin(port)
    [row] = one.session.rows({})
    for number in range(1000):
        one.session.connections.on_relay_ended(RelayEnded(row["id"], number, True, "connection refused"))
    assert LOG_LINES.burst <= sum("was refused" in record.message for record in caplog.records) <= LOG_LINES.burst + 5
    [row] = one.session.rows({})
    assert row["reason"] == "connection refused", "the row says so all the same"

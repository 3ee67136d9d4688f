"""What valid frames may cost: each kind, poured into the exec stream's carrier and into the trunk's, on a clock of the test's.

A turn of the loop takes a bounded number of them, whatever they are; what means nothing is slowed and then ends the carrier.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.agent_protocol import decoder, frames
from autoforward.agent_protocol.frames import SocketEntry
from autoforward.core.budget import (
    EMPTY_FRAMES,
    FRAMES,
    FRAMES_OF_A_STREAM,
    NAMES,
    PATIENCE_S,
    SNAPSHOT_COST,
    SNAPSHOTS,
)
from autoforward.dataplane.mux import exec_mux, trunk
from autoforward.dataplane.mux import multiplexer as carrier_module
from autoforward.dataplane.mux.exec_mux import MAX_NAMES, Mux
from autoforward.dataplane.mux.multiplexer import MAX_OUT_BYTES, TURN_FRAMES, Multiplexer
from autoforward.dataplane.mux.stream import WINDOW_BYTES, MuxStream
from autoforward.dataplane.mux.trunk import Trunk
from autoforward.engine.exec_stream import STDERR, STDOUT
from autoforward.net.write_buffer import WriteBuffer
from tests.support import agent_wire

pytestmark = pytest.mark.unit

READ = carrier_module.selectors.EVENT_READ
KNOWN, UNKNOWN = 1, 77
PING = b"12345678"


class Plane:
    """The loop: the stream is readable all the time, and time passes only while there is nothing to do."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.mask = 0
        self.is_silent = False
        """Whether nothing is to be read."""
        self.handler: Callable[[int], None] = lambda _events: None
        self._turn_ends: list[Callable[[], None]] = []
        self._timers: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()

    def monotonic(self) -> float:
        return self.now_s

    def adopt(self, _owned: object) -> None: ...
    def disown(self, _owned: object) -> None: ...

    def watch(self, _fd: int, events: int, handler: Callable[[int], None]) -> None:
        self.mask, self.handler = events, handler

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        self._turn_ends.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Any:
        timer = SimpleNamespace(callback=callback)
        timer.cancel = lambda: setattr(timer, "callback", None)
        heapq.heappush(self._timers, (self.now_s + delay_s, next(self._numbers), timer))
        return timer

    def turn(self) -> None:
        """What is due or readable; else the clock goes on to what is due next."""
        is_due = bool(self._timers) and self._timers[0][0] <= self.now_s
        if self.mask & READ and not self.is_silent and not is_due:
            self.handler(READ)
            self.now_s += 0.0001
            while self._turn_ends:
                self._turn_ends.pop()()
            return
        at_s, _, timer = heapq.heappop(self._timers)
        self.now_s = max(self.now_s, at_s)
        if timer.callback is not None:
            timer.callback()


class Flood:
    """A stream without end, of one frame (none: it is silent); it takes what it is sent, or nothing."""

    def __init__(self, one: bytes, *, trunk: bool, stream: int = STDOUT, takes: bool = True) -> None:
        self.piece = one * (256 * 1024 // len(one) + 1) if one else b""
        self.open = True
        self.takes = takes
        self.sent = 0
        self._is_trunk = trunk
        self._stream = stream

    def fileno(self) -> int:
        return 9 if self.open else -1

    def recv(self, _size: int = 0) -> Any:
        if not self.piece:
            raise BlockingIOError
        return self.piece if self._is_trunk else [(self._stream, self.piece)]

    def send(self, data: Any) -> int:
        if not self.takes:
            raise BlockingIOError
        self.sent += len(data)
        return len(data)

    def close(self) -> None:
        self.open = False

    def shutdown_write(self) -> None: ...


class End:
    """The relay: its client takes everything at once, or nothing."""

    def __init__(self) -> None:
        self.outbox = WriteBuffer()
        self.reads = True
        self.channel: MuxStream | None = None

    def data(self, chunk: bytes) -> None:
        if self.reads and self.channel is not None:
            self.channel.consumed(len(chunk))
        else:
            self.outbox.append(chunk)

    def server_eof(self) -> None: ...
    def drained(self) -> None: ...
    def broken(self, _reason: str) -> None: ...
    def refuse(self, _reason: str) -> None: ...
    def server_reset(self, _reason: str) -> None: ...


class Rig:
    """One carrier in the middle of its life, with one stream open."""

    def __init__(self, plane: Plane, stream: Flood, *, on_trunk: bool) -> None:
        self.plane = plane
        plane.is_silent = not stream.piece
        self.stream = stream
        self.lost: list[str] = []
        self.told: list[Any] = []
        self.carrier: Multiplexer[Any]
        if on_trunk:
            trunks = SimpleNamespace(lost=self._lost_trunk, check=lambda: None)
            self.carrier = Trunk(cast(Any, plane), cast(Any, trunks), cast(Any, stream), cast(Any, None), b"k", 65536)
        else:
            self.carrier = Mux(cast(Any, plane), cast(Any, stream), self.told.append, self.lost.append, lambda: None)
            self.carrier._decoder._greeted = True
            self.carrier._start_watching()
        self.end = End()
        self.end.channel = self.carrier._add(KNOWN, cast(Any, self.end), 65536, datagrams=False)
        self.taken = 0
        take = self.carrier._take

        def counted(event: frames.Event) -> None:
            self.taken += 1
            take(event)

        self.carrier._take = counted  # type: ignore[method-assign]

    def _lost_trunk(self, reason: str, **_how: bool) -> None:
        self.lost.append(reason)
        self.carrier.close()

    def run(self, seconds: float) -> None:
        """Until then, or until it is lost. No turn takes more than is allowed."""
        end_s = self.plane.now_s + seconds
        while self.plane.now_s < end_s and self.stream.open:
            before = self.taken
            self.plane.turn()
            assert self.taken - before <= TURN_FRAMES


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plane]:
    one = Plane()
    for module in (carrier_module, exec_mux, trunk):
        monkeypatch.setattr(module, "time", one)
    yield one


EMPTY = {
    "EOF of no stream": decoder.encode_eof(UNKNOWN),
    "RESET of no stream": decoder.encode_reset(UNKNOWN, 104),
    "REFUSED of no stream": agent_wire.encode_refused(UNKNOWN, 111),
    "OPENED again": agent_wire.encode_opened(KNOWN, 0),
    "CREDIT of no stream": decoder.encode_credit(UNKNOWN, 65536),
    "CREDIT of a byte": decoder.encode_credit(KNOWN, 1),
    "DATA of no stream": decoder.encode_data(UNKNOWN, b"x"),
    "MOVE of no stream": decoder.encode_move(UNKNOWN),
    "PONG": decoder.encode_pong(PING),
}
ON_THE_EXEC_STREAM = {
    "PING": decoder.encode_ping(PING),
    "BYE": agent_wire.encode_bye("silence", "again"),
}
FLOODS = [
    *((name, one, False) for name, one in (EMPTY | ON_THE_EXEC_STREAM).items()),
    *((name, one, True) for name, one in EMPTY.items()),
]


@pytest.mark.parametrize(("name", "one", "on_trunk"), FLOODS, ids=lambda value: str(value)[:20])
def test_frames_that_mean_nothing_are_slowed_and_end_the_carrier(
    plane: Plane, name: str, one: bytes, on_trunk: bool
) -> None:
    """Whole turns of 30,000 such frames, one after the other, took all of the data plane: 27 ms each."""
    rig = Rig(plane, Flood(one, trunk=on_trunk), on_trunk=on_trunk)
    began_s = plane.now_s
    rig.run(60)
    [reason] = rig.lost
    assert "frames and words that mean nothing without end" in reason
    assert PATIENCE_S < plane.now_s - began_s < 3 * PATIENCE_S
    assert rig.taken < EMPTY_FRAMES.burst + FRAMES_OF_A_STREAM + EMPTY_FRAMES.rate * 1.2 * (plane.now_s - began_s)
    assert rig.stream.sent < 1_000_000, "nor is much said in return"
    if isinstance(rig.carrier, Mux):
        assert rig.carrier.is_over_budget


def test_words_on_its_stderr_are_no_less_empty(plane: Plane) -> None:
    rig = Rig(plane, Flood(b"y\n", trunk=False, stream=STDERR), on_trunk=False)
    began_s = plane.now_s
    rig.run(60)
    assert "without end" in rig.lost[0]
    assert plane.now_s - began_s < 3 * PATIENCE_S


@pytest.mark.parametrize("on_trunk", [False, True], ids=["exec stream", "trunk"])
def test_small_data_is_slowed_and_never_fails(plane: Plane, on_trunk: bool) -> None:
    rig = Rig(plane, Flood(decoder.encode_data(KNOWN, b"xx"), trunk=on_trunk), on_trunk=on_trunk)
    rig.run(1)
    assert not rig.lost
    assert FRAMES.rate < rig.taken < FRAMES.burst + FRAMES.rate * 1.1


@pytest.mark.parametrize("on_trunk", [False, True], ids=["exec stream", "trunk"])
def test_large_data_is_not_slowed_at_all(plane: Plane, on_trunk: bool) -> None:
    """As fast as the loop turns: 256 KiB each time."""
    rig = Rig(plane, Flood(decoder.encode_data(KNOWN, bytes(32 * 1024)), trunk=on_trunk), on_trunk=on_trunk)
    turns = 5000
    for _ in range(turns):
        assert plane.mask & READ, "it is read in each turn"
        plane.turn()
    assert rig.taken >= turns * 8


def test_a_thousand_connections_at_once_again_and_again_are_not_slowed(plane: Plane) -> None:
    """Each is opened, answered, ended by its client with a reset, and answered once more by a server that did not know yet."""
    rig = Rig(plane, Flood(b"", trunk=False), on_trunk=False)
    number = KNOWN
    for _ in range(100):
        said = b""
        for _ in range(1000):
            number += 1
            rig.carrier._add(number, cast(Any, End()), 65536, datagrams=False).abort()
            said += (
                agent_wire.encode_opened(number, 0)
                + decoder.encode_data(number, b"x" * 100)
                + decoder.encode_eof(number)
            )
        rig.carrier._take_turn(said)
        began_s = plane.now_s
        while not plane.mask & READ:
            plane.turn()
        assert plane.now_s - began_s < 0.001, "it is read on at once"
        plane.now_s += 0.1  # 10,000 a second
    assert not rig.lost
    assert rig.taken == 100 * 3000


def test_a_turn_counts_the_sockets_of_a_snapshot(plane: Plane) -> None:
    entries = [SocketEntry("tcp", 1000 + n, "127.0.0.1", 0, n) for n in range(1024)]
    rig = Rig(plane, Flood(agent_wire.encode_snapshot(entries), trunk=False), on_trunk=False)
    for expected in range(1, 5):
        plane.turn()
        assert rig.taken == expected, "one of 1,024 is all of a turn"


def snapshots(count: int, sockets: int) -> list[bytes]:
    return [
        agent_wire.encode_snapshot([SocketEntry("tcp", 1000 + n, "127.0.0.1", 0, seed + n) for n in range(sockets)])
        for seed in range(count)
    ]


def test_control_is_told_of_the_newest_snapshot_at_the_pace_of_the_budget(plane: Plane) -> None:
    """As many as were allowed kept control from its socket for 3 s; those between the first and the last say nothing more."""
    rig = Rig(plane, Flood(b"", trunk=False), on_trunk=False)
    began_s = plane.now_s
    for said in snapshots(90, 2000):
        rig.carrier._take_turn(said)
        while rig.carrier._decoder.has_more:
            rig.carrier._take_turn(b"")
    told = len(rig.told)
    assert told <= SNAPSHOTS.burst // 2000 + 1
    while rig.told[-1].entries[0].inode != 89:
        plane.turn()
    assert len(rig.told) == told + 1, "the newest, and none of those before it"
    assert plane.now_s - began_s <= (2000 + SNAPSHOT_COST) * 2 / SNAPSHOTS.rate


def test_names_wait_their_turn_and_the_newest_of_a_socket_counts(plane: Plane) -> None:
    rig = Rig(plane, Flood(b"", trunk=False), on_trunk=False)
    mux_ = cast(Mux, rig.carrier)
    long_name = b"x" * 1024
    for number in range(8000):
        mux_._take(frames.Process(number % 10, number, long_name))
    assert len(rig.told) <= NAMES.burst // (1 + 1024 // 64) + 1
    assert len(mux_._names) == 10
    while mux_._names:
        plane.turn()
    assert {event.inode: event.pid for event in rig.told} == {number % 10: number for number in range(7990, 8000)}


def test_names_that_wait_are_bounded(plane: Plane) -> None:
    mux_ = cast(Mux, Rig(plane, Flood(b"", trunk=False), on_trunk=False).carrier)
    for number in range(8000):
        mux_._take(frames.Process(number, number, b"x" * 1024))
    assert len(mux_._names) <= MAX_NAMES


def test_an_agent_that_takes_nothing_is_lost_before_it_costs_memory(plane: Plane) -> None:
    rig = Rig(plane, Flood(b"", trunk=False, takes=False), on_trunk=False)
    number = KNOWN
    while rig.stream.open:
        number += 1
        assert number < 1_000_000
        rig.carrier._add(number, cast(Any, End()), 65536, datagrams=False).abort()
        if number % 1000 == 0:
            rig.carrier._flush()
    assert rig.lost == ["the agent does not read what it is sent"]
    assert rig.carrier._out_size < MAX_OUT_BYTES + 100_000


def held_bytes(chunks: Any) -> int:
    return sum(sys.getsizeof(chunk) for chunk in chunks)


def test_a_window_of_small_pieces_is_held_in_little_more_than_its_bytes(plane: Plane) -> None:
    """1 MiB of credit in frames of 2 bytes, for a client that reads nothing, took 33 MB."""
    rig = Rig(plane, Flood(decoder.encode_data(KNOWN, b"xx"), trunk=False), on_trunk=False)
    rig.end.reads = False
    rig.run(60)
    assert "more than it had credit for" in rig.lost[0]
    assert rig.end.outbox.size == WINDOW_BYTES
    assert held_bytes(rig.end.outbox._chunks) < WINDOW_BYTES * 1.1


def test_bytes_of_a_client_in_small_pieces_take_little_more_than_their_size(plane: Plane) -> None:
    rig = Rig(plane, Flood(b"", trunk=False), on_trunk=False)
    channel = rig.carrier._add(2, cast(Any, End()), 0, datagrams=False)
    for number in range(100_000):
        channel.write(number.to_bytes(2, "big", signed=False) if number < 65536 else b"zz")
    assert channel.pending == 200_000
    assert held_bytes(channel._queue) < 220_000
    channel.take_credit(200_000)
    while channel.take_turn():
        pass
    assert channel.pending == 0

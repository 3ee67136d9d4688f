"""One stream over the agent, from the host's side: what a hostile agent may not do. Without sockets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from autoforward.agent_protocol import frames
from autoforward.core.errors import ProtocolError
from autoforward.dataplane.mux.exec_mux import MAX_LOGGED_LINES, MAX_PROCESSES, MAX_SNAPSHOTS, Mux
from autoforward.dataplane.mux.stream import CREDIT_STEP_BYTES, WINDOW_BYTES, MuxStream
from autoforward.dataplane.mux.trunk import TrunkManager

pytestmark = pytest.mark.unit


class FakeEnds:
    """The mux on one side and the relay on the other, as far as a channel that only receives needs them."""

    def __init__(self) -> None:
        self.received = 0
        self.sent: list[bytes] = []
        self.ended = False
        self.direct = None

    def data(self, chunk: bytes) -> None:
        self.received += len(chunk)

    def server_eof(self) -> None:
        self.ended = True

    def send(self, frame: bytes) -> None:
        self.sent.append(frame)


def channel(*, datagrams: bool = False) -> tuple[MuxStream, FakeEnds]:
    ends = FakeEnds()
    return MuxStream(cast(Mux, ends), 1, cast(Any, ends), frames.MIN_WINDOW, datagrams=datagrams), ends


def test_window_grows_by_what_the_client_took() -> None:
    stream, ends = channel()
    stream.take_data(bytes(WINDOW_BYTES), last=True)
    stream.consumed(CREDIT_STEP_BYTES)
    assert len(ends.sent) == 1
    stream.take_data(bytes(CREDIT_STEP_BYTES), last=True)
    assert ends.received == WINDOW_BYTES + CREDIT_STEP_BYTES


@pytest.mark.parametrize("datagrams", [False, True])
def test_data_beyond_the_credit_is_a_violation(datagrams: bool) -> None:
    stream, ends = channel(datagrams=datagrams)
    stream.take_data(bytes(WINDOW_BYTES), last=True)
    with pytest.raises(ProtocolError, match="credit"):
        stream.take_data(b"x", last=True)
    assert ends.received == WINDOW_BYTES


def test_parts_of_a_datagram_count_before_it_is_whole() -> None:
    stream, ends = channel(datagrams=True)
    stream.take_data(bytes(WINDOW_BYTES), last=False)
    with pytest.raises(ProtocolError, match="credit"):
        stream.take_data(b"x", last=False)
    assert ends.received == 0


def test_data_after_the_end_is_a_violation() -> None:
    stream, ends = channel()
    stream.take_eof()
    assert ends.ended
    with pytest.raises(ProtocolError, match="after its end"):
        stream.take_data(b"x", last=True)
    with pytest.raises(ProtocolError, match="twice"):
        stream.take_eof()


def test_empty_data_is_a_datagram_and_a_stream_error() -> None:
    stream, ends = channel(datagrams=True)
    stream.take_data(b"", last=True)
    assert ends.received == 0
    with pytest.raises(ProtocolError, match="none"):
        channel()[0].take_data(b"", last=True)


def test_credit_beyond_its_sum_is_a_violation() -> None:
    stream, _ = channel()
    stream.take_credit(frames.MAX_CREDIT - frames.MIN_WINDOW)
    with pytest.raises(ProtocolError, match="more credit"):
        stream.take_credit(1)


def test_snapshots_without_end_are_a_violation() -> None:
    """Control takes them one after the other: what it cannot keep up with would pile up in memory."""
    told: list[object] = []
    nobody = cast(Any, None)
    mux = Mux(nobody, nobody, told.append, nobody, nobody)
    for _ in range(MAX_SNAPSHOTS):
        mux._take(frames.SnapshotEvent((), False))
    with pytest.raises(ProtocolError, match="without end"):
        mux._take(frames.SnapshotEvent((), False))
    assert len(told) == MAX_SNAPSHOTS


def test_processes_are_told_on_and_without_end_they_are_a_violation() -> None:
    told: list[object] = []
    nobody = cast(Any, None)
    mux = Mux(nobody, nobody, told.append, nobody, nobody)
    for inode in range(MAX_PROCESSES):
        mux._take(frames.Process(inode, 1, b"python3"))
    with pytest.raises(ProtocolError, match="without end"):
        mux._take(frames.Process(1, 1, b"python3"))
    assert told[:1] == [frames.Process(0, 1, b"python3")]
    assert len(told) == MAX_PROCESSES


def test_an_answer_that_comes_again_and_again_is_judged_once() -> None:
    """The agent may say PONG as often as it likes: each had its timer."""
    due: list[object] = []
    asked: list[bytes] = []
    plane = SimpleNamespace(call_later=lambda _delay_s, call: due.append(call) or call)
    trunks = TrunkManager(cast(Any, plane), cast(Any, SimpleNamespace(send=asked.append)), cast(Any, None))
    trunks._trunk = cast(Any, SimpleNamespace(send=asked.append, heard_s=float("inf"), catch_up=lambda: None))
    trunks.check()
    trunks.check()
    assert len(asked) == 2 and asked[0] == asked[1], "once on each path, until it is answered"
    for _ in range(1000):
        trunks.pong(asked[0][-8:])
    assert len(due) == 1
    trunks.pong(b"whatever")
    due.pop()()  # type: ignore[operator]
    trunks.check()
    assert len(asked) == 4 and asked[2] != asked[0]


def test_flood_of_agent_messages_is_not_all_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Who writes into the agent's stderr as fast as he can had the supervisor grow by 40 MB a second."""
    caplog.set_level("INFO")
    nobody = cast(Any, None)
    mux = Mux(nobody, nobody, nobody, nobody, nobody)
    for number in range(MAX_LOGGED_LINES):
        mux._take_stderr([b"%d" % number, b"\x1b[2J%d again" % number])
    assert len(caplog.records) == MAX_LOGGED_LINES
    assert "\x1b" not in caplog.text
    assert mux._last_stderr == f"[2J{MAX_LOGGED_LINES - 1} again", "the last ones are the reason of its end"

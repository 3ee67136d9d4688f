"""Which relay's server has closed: sockets in CLOSE_WAIT, joined to relays by inode, asked for as seldom as possible."""

from __future__ import annotations

import pytest

from autoforward.detection.proc_net import SocketRow
from autoforward.lanes.close_wait import CloseWaitTracker

pytestmark = pytest.mark.unit

TOKEN = "0123456789abcdef" * 2
PORTS = frozenset({3000})


def waiting(inode: int, remote_port: int = 3000) -> SocketRow:
    return SocketRow(40000 + inode, "127.0.0.1", "127.0.0.1", remote_port, "close_wait", 0, inode)


@pytest.fixture
def tracker() -> CloseWaitTracker:
    one = CloseWaitTracker()
    one.started(1, 101, TOKEN, PORTS)
    one.started(2, 102, TOKEN, PORTS)
    return one


def test_quiet_frame_asks_nothing(tracker: CloseWaitTracker) -> None:
    assert tracker.frame([]) == ([], [])


def test_sockets_of_others_are_not_asked_about(tracker: CloseWaitTracker) -> None:
    """An app of the container that forgets to close is no relay of ours: it dialled elsewhere."""
    assert tracker.frame([waiting(9, remote_port=5432)]) == ([], [])


def test_inode_of_a_relay_is_asked_for_once(tracker: CloseWaitTracker) -> None:
    assert tracker.frame([waiting(71)]) == ([], [(101, TOKEN), (102, TOKEN)])
    assert tracker.frame([waiting(71)]) == ([], [])
    assert tracker.answer(101, [70, 71]) == [1]
    assert tracker.answer(102, [72]) == []
    # The second one's sockets are known by now: no question when its server closes.
    assert tracker.frame([waiting(71), waiting(72)]) == ([2], [])
    assert tracker.frame([waiting(71), waiting(72)]) == ([], [])


def test_answer_that_came_too_early_is_asked_for_again(tracker: CloseWaitTracker) -> None:
    """The process had no socket yet, or its shell had not become the tool."""
    tracker.frame([waiting(71)])
    assert tracker.answer(101, []) == []
    assert tracker.frame([waiting(71)]) == ([], [(101, TOKEN)])


def test_next_attempt_has_another_process(tracker: CloseWaitTracker) -> None:
    tracker.frame([waiting(71)])
    tracker.answer(101, [70])
    tracker.started(1, 103, TOKEN, PORTS)
    assert tracker.frame([waiting(71)]) == ([], [(103, TOKEN)])
    assert tracker.answer(103, [71]) == [1]


def test_socket_of_a_relay_that_dials_elsewhere_does_not_count(tracker: CloseWaitTracker) -> None:
    tracker.frame([waiting(71)])
    tracker.answer(101, [70, 80])
    assert tracker.frame([waiting(80, remote_port=5432)]) == ([], [])


def test_relay_that_ended_is_forgotten(tracker: CloseWaitTracker) -> None:
    tracker.ended(1)
    tracker.ended(1)
    assert tracker.frame([waiting(71)]) == ([], [(102, TOKEN)])
    assert tracker.answer(101, [71]) == []


def test_row_without_an_inode_belongs_to_nobody(tracker: CloseWaitTracker) -> None:
    assert tracker.frame([waiting(0)]) == ([], [])


def test_listeners_are_not_looked_at(tracker: CloseWaitTracker) -> None:
    row = SocketRow(3000, "127.0.0.1", "0.0.0.0", 3000, "listen", 0, 5)
    assert tracker.frame([row]) == ([], [])

"""A command that waits hears a signal wherever it comes, and loses nothing of what it was being told."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest

from autoforward.cli.console.interrupt import Interrupted, interruptible, wait_readable
from autoforward.cli.console.supervisor_client import Call

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait(number: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, interruptible():
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(Interrupted):
            wait_readable(ours)
        timer.join()
        # The word of a signal that was heard keeps nobody from waiting again.
        threading.Timer(0.05, theirs.send, (b"x",)).start()
        wait_readable(ours)


def test_half_a_message_is_not_lost() -> None:
    ours, theirs = socket.socketpair()
    with theirs, interruptible(), Call(ours, {"op": "x"}) as one:
        theirs.sendall(b'{"type":"progress",')
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(Interrupted):
            list(one)
        theirs.sendall(b'"text":"x"}\n{"type":"result"}\n')
        assert list(one) == [{"type": "progress", "text": "x"}]
        assert one.result == {"type": "result"}


def test_afterwards_everything_is_as_it_was() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1

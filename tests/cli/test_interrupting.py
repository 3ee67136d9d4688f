"""A command that waits hears a signal wherever it comes, and loses nothing of what it was being told."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import socket
import threading

import pytest

from autoforward.cli.console.interrupt import Interrupted, interruptible, wait_for
from autoforward.cli.console.supervisor_client import Call
from autoforward.net.poller import wait_readable

pytestmark = [pytest.mark.local, pytest.mark.timeout(60)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_wait(number: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, interruptible():
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(Interrupted):
            wait_for(ours)
        timer.join()
        # The word of a signal that was heard keeps nobody from waiting again.
        threading.Timer(0.05, theirs.send, (b"x",)).start()
        wait_for(ours)


def test_a_wait_takes_any_number_of_a_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 2000:
        pytest.skip("this system gives no descriptor beyond 1,024")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ours, theirs = socket.socketpair()
    try:
        high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1500))
        with ours, theirs, high, interruptible():
            theirs.send(b"x")
            wait_for(high)
            assert wait_readable(high.fileno(), timeout_s=0) == [high.fileno()]
            high.recv(1)
            assert wait_readable(high.fileno(), timeout_s=0) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


def test_signal_handlers_are_restored_after_a_wait() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1

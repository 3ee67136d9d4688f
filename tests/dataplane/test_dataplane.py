"""The data plane and its relays without an engine: real sockets, a far end that the test plays."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from autoforward.dataplane import relay
from autoforward.dataplane.messages import (
    AcceptPaused,
    KillWanted,
    ReadCounters,
    RelayEnded,
    Serve,
    ServerClosed,
    StreamFailed,
    StreamWanted,
    Withdraw,
)
from autoforward.dataplane.relay import HIGH_WATER_BYTES
from autoforward.dataplane.times import TIMES
from autoforward.net.write_buffer import RECEIVE_BYTES
from tests.support.containers import eventually
from tests.support.plane_rig import FORWARD, TIMEOUT_S, Rig, fill, read_all, reset, rig, waiting

pytestmark = pytest.mark.local

BOUND = HIGH_WATER_BYTES + RECEIVE_BYTES
"""What one direction of a relay may hold: the mark, and the one piece that went over it."""

IDLE_TURNS = 12
"""In an idle second: two looks at peers, a timer or two, and generously more. A busy loop makes thousands."""


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(times=getattr(request, "param", TIMES)) as one:
        yield one


# -- half-close and ordinary ends ------------------------------------------------------------------


def test_client_half_close_waits_for_a_late_answer(here: Rig) -> None:
    client, far = here.relay()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert far.read_all() == b"question"
    assert here.turns_during(1.0) <= IDLE_TURNS
    far.stdout(b"late answer")
    far.exit()
    assert read_all(client) == b"late answer"
    assert here.expect(RelayEnded) == RelayEnded(FORWARD, far.relay_id, False, None)


def test_server_that_closes_first_ends_the_relay_while_the_client_stays(here: Rig) -> None:
    client, far = here.relay()
    far.stdout(b"hello")
    far.server_eof()
    assert far.read_all() == b""
    far.stdout(b" and bye")
    far.exit()
    assert here.expect(RelayEnded).reason is None
    assert read_all(client) == b"hello and bye"


def test_server_closed_as_seen_from_elsewhere_ends_stdin(here: Rig) -> None:
    client, far = here.relay()
    here.plane.submit(ServerClosed(far.relay_id))
    assert far.read_all() == b""
    far.exit()
    assert read_all(client) == b""


def test_bytes_sent_before_the_server_ended_still_arrive(here: Rig) -> None:
    client, far = here.relay()
    fill(client, os.urandom(1 << 20))
    taken = here.counters().bytes_in
    assert taken >= HIGH_WATER_BYTES
    far.server_eof()
    assert len(far.read_all()) >= taken
    far.exit()
    # The client's last bytes were never read by anyone, as with any server that closes first.
    assert here.expect(RelayEnded).reason is None


def test_a_server_that_ended_and_reads_nothing_does_not_keep_the_relay(here: Rig) -> None:
    client, far = here.relay()
    fill(client, bytes(1 << 20))
    far.server_eof()
    # Nothing is read of what waits here, so the stream's own end of input is all that can be seen of it.
    eventually(lambda: _stdin_has_ended(far.sock), timeout_s=TIMEOUT_S, what="end of stdin")
    far.exit()
    here.expect(RelayEnded)


def _stdin_has_ended(sock: socket.socket) -> bool:
    import select

    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(0))


def test_greeting_of_the_server_arrives_before_the_client_says_a_word(here: Rig) -> None:
    client, far = here.relay()
    far.stdout(b"220 ready\r\n")
    assert client.recv(100) == b"220 ready\r\n"
    client.sendall(b"QUIT")
    assert far.read(4) == b"QUIT"


def test_counters_count(here: Rig) -> None:
    client, far = here.relay()
    client.sendall(b"12345")
    far.read(5)
    far.stdout(b"123")
    assert client.recv(3) == b"123"
    count = here.counters()
    assert (count.active, count.total, count.refused, count.bytes_in, count.bytes_out) == (1, 1, 0, 5, 3)
    far.exit()
    here.expect(RelayEnded)
    assert here.counters().active == 0


# -- backpressure ----------------------------------------------------------------------------------


def _relay_of(here: Rig, relay_id: int) -> relay.Relay:
    return here.plane._relays[relay_id]


def test_slow_server_holds_the_client_back(here: Rig) -> None:
    client, far = here.relay()
    piece = os.urandom(1 << 20)
    sent = fill(client, piece)
    channel = _relay_of(here, far.relay_id)._channel
    assert channel is not None
    assert HIGH_WATER_BYTES < channel.pending <= BOUND
    assert here.turns_during(1.0) <= IDLE_TURNS
    client.shutdown(socket.SHUT_WR)
    whole = piece * (sent // len(piece) + 1)
    assert hashlib.sha256(far.read_all()).digest() == hashlib.sha256(whole[:sent]).digest()


def test_slow_client_holds_the_server_back(here: Rig) -> None:
    client, far = here.relay()
    piece = os.urandom(1 << 20)
    sent: list[int] = []

    def send() -> None:
        for _ in range(48):
            far.stdout(piece)
            sent.append(len(piece))
        far.exit()

    sender = threading.Thread(target=send)
    sender.start()
    outbox = _relay_of(here, far.relay_id)._outbox
    eventually(lambda: outbox.size > HIGH_WATER_BYTES, timeout_s=TIMEOUT_S, what="a full outbox")
    assert here.turns_during(1.0) <= IDLE_TURNS
    assert outbox.size <= BOUND
    assert len(sent) < 48
    assert hashlib.sha256(read_all(client)).digest() == hashlib.sha256(piece * 48).digest()
    sender.join(TIMEOUT_S)
    assert here.expect(RelayEnded).reason is None


def test_process_that_ends_while_the_client_is_slow_costs_no_cpu(here: Rig) -> None:
    """The stream hangs up while nobody reads it: a hang-up is reported to every selector that asks for anything."""
    client, far = here.relay()
    # One frame that is longer than everything that can be on its way, so that it can be filled until nothing moves.
    far.sock.sendall(struct.pack(">BxxxI", 1, 1 << 30))
    total = fill(far.sock, bytes(1 << 20))
    far.exit()
    assert here.turns_during(1.0) <= IDLE_TURNS
    assert len(read_all(client)) == total


def test_answer_is_whole_though_the_client_sends_after_its_end(here: Rig) -> None:
    """A socket that is closed answers what still comes with a reset, and the reset overtakes the end of the answer."""
    with socket.socket() as client:
        client.settimeout(TIMEOUT_S)
        # Most of the answer has to wait on our side.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(here.listener.getsockname())
        far = here.stream()
        far.opened()
        answer = os.urandom(200_000)
        far.stdout(answer)
        far.exit()
        assert here.expect(RelayEnded).reason is None
        client.sendall(b"more, of which nobody has heard")
        assert read_all(client) == answer


def test_client_that_sends_while_its_answer_waits_costs_no_cpu_and_is_not_stuck(here: Rig) -> None:
    """The far end is over, the client does not read yet, and what it sends has nowhere to go: it is discarded."""
    client, far = here.relay()
    outbox = _relay_of(here, far.relay_id)._outbox
    total = 0
    while outbox.size <= HIGH_WATER_BYTES // 2:  # buffers of the system may still grow a little: with room to spare
        far.stdout(bytes(20_000))
        total += 20_000
        # Two answers are two turns: what is still there then is not on its way through, but waits for the client.
        here.counters()
        here.counters()
    far.exit()
    eventually(lambda: _relay_of(here, far.relay_id)._server_ended, what="the end of the far end")
    client.sendall(bytes(16 << 20))
    client.sendall(b"more")
    # What it sent is still being read, a turn a piece; a busy loop would never come to rest.
    eventually(lambda: here.turns_during(1.0) <= IDLE_TURNS, timeout_s=TIMEOUT_S, what="a loop at rest")
    assert len(read_all(client)) == total


# -- refusals and resets ---------------------------------------------------------------------------


def test_missing_stream_is_a_reset_with_a_reason(here: Rig) -> None:
    client = here.connect()
    here.plane.submit(StreamFailed(here.expect(StreamWanted).relay_id, "no such container"))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    ended = here.expect(RelayEnded)
    assert (ended.refused, ended.reason) == (True, "no such container")
    assert here.counters().refused == 1


def test_client_reset_while_the_server_does_not_read(here: Rig) -> None:
    """A client that is held back is not read, so its reset shows to nobody who does not look for it."""
    client, _far = here.relay()
    eventually(lambda: not here.plane._peers._relays, what="a client that is read")
    fill(client, bytes(1 << 20))
    reset(client)
    assert here.expect(RelayEnded).reason == "the client broke off"
    assert here.expect(KillWanted).container_pid == 41


def test_client_reset_after_its_half_close(here: Rig) -> None:
    client, far = here.relay()
    eventually(lambda: not here.plane._peers._relays, what="a client that is read")
    client.shutdown(socket.SHUT_WR)
    far.read_all()
    reset(client)
    here.expect(RelayEnded)
    assert here.expect(KillWanted).container_pid == 41


def test_client_that_leaves_before_there_is_a_stream(here: Rig) -> None:
    reset(here.connect())
    wanted = here.expect(StreamWanted)
    assert here.expect(RelayEnded).relay_id == wanted.relay_id
    far = here.stream(wanted)
    far.opened(77)
    assert here.expect(KillWanted).container_pid == 77
    assert far.read_all() == b""


def test_fault_in_one_relay_spares_the_others(here: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, broken_far = here.relay()
    client, far = here.relay()
    far.stdout(b"1")
    assert client.recv(1) == b"1"
    original = relay.Relay.data

    def data(self: relay.Relay, chunk: bytes) -> None:
        if self.relay_id == broken_far.relay_id:
            raise ZeroDivisionError
        original(self, chunk)

    monkeypatch.setattr(relay.Relay, "data", data)
    broken_far.stdout(b"x")
    far.stdout(b"2")
    assert client.recv(1) == b"2"
    assert here.turns_during(0.5) <= IDLE_TURNS


# -- closed altogether, or only half ---------------------------------------------------------------


@waiting(gone_grace_s=0.2)
def test_client_that_closed_is_told_from_one_that_half_closed(here: Rig) -> None:
    half, half_far = here.relay()
    half.sendall(b"half")
    half.shutdown(socket.SHUT_WR)
    assert half_far.read_all() == b"half"
    closed, closed_far = here.relay()
    closed.sendall(b"closed")
    closed.close()
    assert closed_far.read_all() == b"closed"
    ended = here.expect(RelayEnded)
    assert (ended.relay_id, ended.reason) == (closed_far.relay_id, "the client has gone")
    assert here.expect(KillWanted).hard is False
    # The one who half-closed was looked at as often, and is still there.
    half_far.stdout(b"answer")
    half_far.exit()
    assert read_all(half) == b"answer"


@waiting(gone_grace_s=0.1)
def test_bytes_of_a_client_that_has_gone_reach_a_slow_server(here: Rig) -> None:
    client, far = here.relay()
    sent = fill(client, bytes(1 << 20))
    client.close()
    # Several looks at the peer, and several graces: none of them may cut what still waits.
    threading.Event().wait(1.5)
    assert not here.has(RelayEnded)
    assert len(far.read_all()) == sent


@waiting(gone_grace_s=0.1, stalled_s=0.3)
def test_server_that_never_reads_does_not_keep_a_client_that_has_gone(here: Rig) -> None:
    """All bytes were read from the client, and wait for a process whose server reads none of them."""
    client, far = here.relay()
    far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(bytes(HIGH_WATER_BYTES))
    eventually(lambda: here.counters().bytes_in == HIGH_WATER_BYTES, what="all bytes read")
    client.close()
    assert here.expect(RelayEnded).reason == "the client has gone"
    here.expect(KillWanted)


# -- commands --------------------------------------------------------------------------------------


def _withdraw(here: Rig, *, reset: bool) -> None:
    done: Future[None] = Future()
    here.plane.submit(Withdraw(FORWARD, reset, done))
    done.result(TIMEOUT_S)


def test_withdraw_leaves_open_connections_alone(here: Rig) -> None:
    client, far = here.relay()
    _withdraw(here, reset=False)
    here.listener.close()
    far.stdout(b"still here")
    assert client.recv(100) == b"still here"
    far.exit()
    assert read_all(client) == b""


def test_withdraw_with_reset_cuts_them(here: Rig) -> None:
    client, far = here.relay()
    far.stdout(b"x")
    assert client.recv(1) == b"x"
    _withdraw(here, reset=True)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert here.expect(RelayEnded).reason == "the forward ended"
    assert here.expect(KillWanted).container_pid == 41


def test_withdraw_and_serve_again(here: Rig) -> None:
    _withdraw(here, reset=False)
    here.plane.submit(Serve(FORWARD, (here.listener,)))
    client, far = here.relay()
    far.stdout(b"again")
    assert client.recv(100) == b"again"


def test_drain_waits_for_the_last_relay(here: Rig) -> None:
    client, far = here.relay()
    done = here.drain(TIMEOUT_S)
    far.stdout(b"the rest")
    assert client.recv(100) == b"the rest"
    assert not done.done()
    far.exit()
    assert done.result(TIMEOUT_S) is True
    assert here.drain(TIMEOUT_S).result(TIMEOUT_S) is True


def test_drain_cuts_at_its_deadline(here: Rig) -> None:
    client, far = here.relay()
    far.stdout(b"x")
    client.recv(1)
    assert here.drain(0.1).result(TIMEOUT_S) is False
    with pytest.raises(ConnectionResetError):
        client.recv(1)


class _Exhausted(socket.socket):
    """A listener in a process that is out of descriptors."""

    failures = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@waiting(accept_pause_s=0.2)
def test_accepting_rests_when_descriptors_run_out(here: Rig) -> None:
    with _Exhausted() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        here.plane.submit(Serve("fwd-2", (listener,)))
        client = here.connect(listener)
        assert here.expect(AcceptPaused) == AcceptPaused("fwd-2", os.strerror(errno.EMFILE))
        far = here.stream()
        far.opened()
        far.stdout(b"late, but there")
        assert client.recv(100) == b"late, but there"
        assert not here.has(AcceptPaused)
        done: Future[None] = Future()
        here.plane.submit(Withdraw("fwd-2", True, done))
        done.result(TIMEOUT_S)


def test_requests_to_a_stopped_plane_end() -> None:
    with rig() as here:
        client, far = here.relay()
        far.stdout(b"x")
        client.recv(1)
        here.plane.stop()
        here.plane.stop()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert far.read_all() == b""
        far.wait_let_go()
        withdrawn: Future[None] = Future()
        counted: Future[dict[str, object]] = Future()
        here.plane.submit(Withdraw(FORWARD, True, withdrawn))
        here.plane.submit(ReadCounters(counted))  # type: ignore[arg-type]
        assert (withdrawn.result(0), counted.result(0), here.drain(1.0).result(0)) == (None, {}, True)
        late = here.stream(StreamWanted(FORWARD, 99))
        late.wait_let_go()


# -- nothing is left -------------------------------------------------------------------------------


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
@waiting(gone_grace_s=0.05, linger_s=0.2, peer_check_interval_s=0.05)
def test_three_hundred_connections_leave_no_descriptor(here: Rig) -> None:
    """Every end that a connection can come to closes its client, its stream, and takes both off the selector."""
    before = _descriptors()
    assert here.counters().total == 0  # the listener is being watched by now
    watched = len(here.plane._loop._watched)
    choose = random.Random(300)
    ends = [
        "server first", "client first", "half close", "reset", "reset early", "refused", "no stream", "broken",
        "gone", "slow and reset", "withdrawn client", "server first and client stays",
    ]  # fmt: skip
    for number in range(300):
        _end_in_some_way(here, ends[number % len(ends)], choose)
    eventually(lambda: here.counters().active == 0, timeout_s=TIMEOUT_S, what="all relays over")
    eventually(lambda: len(here.plane._loop._watched) == watched, timeout_s=TIMEOUT_S, what="selector empty")
    eventually(lambda: _descriptors() <= before, timeout_s=TIMEOUT_S, what="descriptors back")
    assert (here.plane._loop._owned, here.plane._peers._relays, here.plane._relays) == (set(), set(), {})
    assert here.counters().total == 300


def _end_in_some_way(here: Rig, how: str, choose: random.Random) -> None:
    client = here.connect()
    wanted = here.expect(StreamWanted)
    if how == "no stream":
        here.plane.submit(StreamFailed(wanted.relay_id, "none"))
        here.expect(RelayEnded)
        client.close()
        return
    if how == "reset early":
        reset(client)
    far = here.stream(wanted)
    if how == "refused":
        far.failed()
    else:
        far.opened()
    if how in ("half close", "client first"):
        client.sendall(bytes(choose.randrange(1, 200_000)))
        client.shutdown(socket.SHUT_WR)
        far.read_all()
    if how == "half close":
        far.stdout(bytes(choose.randrange(1, 100_000)))
    if how.startswith("server first"):
        far.stdout(bytes(choose.randrange(1, 100_000)))
        far.server_eof()
        far.read_all()
    if how == "broken":
        far.server_reset()
    if how == "slow and reset":
        fill(client, bytes(1 << 20), quiet_s=0.05)
    if "reset" in how and how != "reset early":
        reset(client)
    if how in ("gone", "withdrawn client"):
        client.close()
    if how in ("gone", "slow and reset", "reset", "reset early", "withdrawn client"):
        # Killed in the container, because it was asked for.
        if how != "withdrawn client":
            here.expect(KillWanted)
        far.sock.close()
    far.exit()
    ended = here.expect(RelayEnded)
    assert ended.relay_id == wanted.relay_id, how
    if how == "server first and client stays":
        assert read_all(client)
    client.close()


def test_idle_connections_cost_no_cpu(here: Rig) -> None:
    open_ones = [here.relay() for _ in range(20)]
    for client, far in open_ones:
        far.stdout(b"x")
        assert client.recv(1) == b"x"
    before_s = time.process_time()
    assert here.turns_during(1.0) <= IDLE_TURNS
    assert time.process_time() - before_s < 0.3

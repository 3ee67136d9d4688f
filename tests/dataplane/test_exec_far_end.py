"""A relay's far end on an exec stream: what the process says, and how it is made to end. No engine."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from autoforward.dataplane.messages import AddressAnswered, KillWanted, RelayEnded, RelayStarted, StreamWanted
from autoforward.dataplane.times import TIMES
from tests.support.plane_rig import BUSYBOX, FORWARD, TOKEN, Rig, read_all, reset, rig, waiting

pytestmark = pytest.mark.local


@pytest.fixture
def here(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(times=getattr(request, "param", TIMES)) as one:
        yield one


# -- no server -------------------------------------------------------------------------------------


def test_refusal_is_a_reset_with_the_tools_reason(here: Rig) -> None:
    client = here.connect()
    far = here.stream()
    far.failed()
    far.exit()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert here.expect(RelayEnded) == RelayEnded(FORWARD, far.relay_id, True, "Connection refused")


def test_process_that_ends_without_a_word_is_a_refusal(here: Rig) -> None:
    client = here.connect()
    here.stream().exit()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert here.expect(RelayEnded).reason == "the relay process ended before it had connected"


def test_engines_own_error_is_the_reason(here: Rig) -> None:
    client = here.connect()
    far = here.stream()
    far.sock.sendall(struct.pack(">BxxxI", 3, 9) + b"no memory")
    far.exit()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert here.expect(RelayEnded).reason == "no memory"


def test_engines_word_in_the_servers_place_is_not_the_servers(here: Rig) -> None:
    """Met when a container stopped: Docker says on stdout that it cannot start a process, and clients had it for an answer."""
    client = here.connect()
    far = here.stream()
    far.stdout(b"cannot exec in a stopped state: unknown\r\n")
    far.exit()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    reason = "cannot exec in a stopped state: unknown"
    assert here.expect(RelayEnded) == RelayEnded(FORWARD, far.relay_id, True, reason)


def test_bytes_of_the_server_may_overtake_the_process(here: Rig) -> None:
    client = here.connect()
    far = here.stream()
    far.stdout(b"220 ready")
    far.opened()
    far.stdout(b", go on")
    far.exit()
    assert read_all(client) == b"220 ready, go on"


def test_malformed_frame_ends_its_relay_only(here: Rig) -> None:
    other, other_far = here.relay()
    client, far = here.relay()
    far.sock.sendall(b"HTTP/1.1 500 oh")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert "frame" in str(here.expect(RelayEnded).reason)
    other_far.stdout(b"fine")
    assert other.recv(100) == b"fine"


@waiting(open_timeout_s=0.1)
def test_tool_that_never_connects_is_not_waited_for(here: Rig) -> None:
    client = here.connect()
    far = here.stream()
    far.stderr("AF pid 41")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert "no connection to the server within" in str(here.expect(RelayEnded).reason)
    assert here.expect(KillWanted).container_pid == 41


def test_no_byte_is_read_of_a_client_before_there_is_a_server(here: Rig) -> None:
    client = here.connect()
    client.sendall(b"early")
    far = here.stream()
    far.stderr("AF pid 41")
    here.expect(RelayStarted)
    assert here.counters().bytes_in == 0
    far.opened(42)
    assert far.read(5) == b"early"


def test_server_that_breaks_off_resets_the_client(here: Rig) -> None:
    client, far = here.relay()
    far.server_reset()
    far.exit()
    with pytest.raises(ConnectionResetError):
        read_all(client)
    ended = here.expect(RelayEnded)
    assert (ended.refused, ended.reason) == (False, "Connection reset by peer")


# -- several addresses -----------------------------------------------------------------------------


def test_second_address_answers(here: Rig) -> None:
    client = here.connect()
    client.sendall(b"question")
    far = here.stream(attempts=2)
    far.failed(41)
    far.opened(42)
    assert far.read(8) == b"question"
    assert here.expect(AddressAnswered) == AddressAnswered(FORWARD, far.relay_id, 1)
    assert [here.expect(RelayStarted).container_pid for _ in range(2)] == [41, 42]
    # The later pid is the one to end.
    reset(client)
    assert here.expect(KillWanted) == KillWanted("session", 42, TOKEN, False)


def test_relay_without_an_answering_address_is_reset_with_the_reason(here: Rig) -> None:
    client = here.connect()
    far = here.stream(attempts=2)
    far.failed(41)
    far.failed(42, "Network is unreachable")
    far.exit()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert here.expect(RelayEnded).reason == "Network is unreachable"
    assert not here.has(AddressAnswered)


def test_only_address_of_several_that_fails_is_followed_by_the_others(here: Rig) -> None:
    """The one that answered last time is dialled alone; the client must not feel it when the server has moved."""
    client = here.connect()
    client.sendall(b"question")
    wanted = here.expect(StreamWanted)
    first = here.stream(wanted, fallback=True)
    first.failed()
    first.exit()
    assert here.expect(StreamWanted) == StreamWanted(FORWARD, wanted.relay_id, retry=True)
    second = here.stream(StreamWanted(FORWARD, wanted.relay_id, retry=True), attempts=2)
    second.failed()
    second.opened()
    assert second.read(8) == b"question"
    second.stdout(b"answer")
    assert client.recv(100) == b"answer"
    assert not here.has(RelayEnded)


def test_answer_of_a_single_address_is_no_event(here: Rig) -> None:
    client, far = here.relay()
    far.stdout(b"x")
    assert client.recv(1) == b"x"
    assert not here.has(AddressAnswered)


# -- a tool that does not say when it is connected (busybox) ----------------------------------------


def test_silent_tool_gets_bytes_at_once(here: Rig) -> None:
    client = here.connect()
    client.sendall(b"question")
    far = here.stream(tool=BUSYBOX)
    assert far.read(8) == b"question"
    far.stderr("AF pid 41")
    far.stdout(b"answer")
    far.exit()
    assert read_all(client) == b"answer"
    assert here.expect(RelayEnded).reason is None


def test_silent_tool_whose_server_says_nothing_is_an_ordinary_end(here: Rig) -> None:
    client = here.connect()
    far = here.stream(tool=BUSYBOX, attempts=2)
    far.stderr("AF pid 41")
    far.stderr("nc: can't connect to remote host (127.0.0.1): Connection refused")
    far.stderr("AF pid 42")
    far.exit()
    assert read_all(client) == b""
    assert here.expect(RelayEnded).refused is False


def test_silent_tool_that_fails_is_a_refusal(here: Rig) -> None:
    client = here.connect()
    far = here.stream(tool=BUSYBOX)
    far.stderr("AF pid 41")
    far.stderr("nc: can't connect to remote host (127.0.0.1): Connection refused")
    far.exit()
    with pytest.raises(ConnectionResetError):
        read_all(client)
    assert here.expect(RelayEnded) == RelayEnded(FORWARD, far.relay_id, True, "Connection refused")


# -- the ladder ------------------------------------------------------------------------------------


@waiting(hard_kill_after_s=0.1, abandon_after_s=0.1)
def test_abort_ends_stdin_then_kills_then_kills_for_good_then_lets_go(here: Rig) -> None:
    client, far = here.relay()
    reset(client)
    assert here.expect(KillWanted) == KillWanted("session", 41, TOKEN, False)
    assert here.expect(KillWanted) == KillWanted("session", 41, TOKEN, True)
    far.wait_let_go()
    assert not here.has(KillWanted)


@waiting(hard_kill_after_s=0.2)
def test_process_that_obeys_is_not_killed_for_good(here: Rig) -> None:
    client, far = here.relay()
    reset(client)
    here.expect(KillWanted)
    far.exit()
    assert here.turns_during(0.5) <= 5
    assert not here.has(KillWanted)


def test_pid_that_comes_late_is_killed_all_the_same(here: Rig) -> None:
    client = here.connect()
    wanted = here.expect(StreamWanted)
    far = here.stream(wanted)
    reset(client)
    here.expect(RelayEnded)
    assert not here.has(KillWanted)
    far.stderr("AF pid 41")
    assert here.expect(KillWanted).container_pid == 41
    # Its first address failed meanwhile, and it went on to the next.
    far.failed(43)
    assert here.expect(KillWanted).container_pid == 43


@waiting(abandon_after_s=0.1)
def test_process_without_a_pid_is_let_go_of(here: Rig) -> None:
    client = here.connect()
    far = here.stream()
    reset(client)
    far.wait_let_go()
    assert not here.has(KillWanted)


def test_output_of_the_tool_after_an_abort_is_ignored(here: Rig) -> None:
    """After the abort the process may still talk: its output goes nowhere, and its end is quiet."""
    client, far = here.relay()
    reset(client)
    here.expect(RelayEnded)
    far.stdout(bytes(1 << 20))
    far.server_eof()
    far.exit()
    assert here.counters().active == 0
    assert not here.has(RelayEnded)

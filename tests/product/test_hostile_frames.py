"""A container that speaks in the place of our agent or watcher, and says nothing that is not allowed: without end.

Each input cost the supervisor without limit: memory, the data plane's time, the control loop's, the log's events. Its container
is slowed, and fails where what it says means nothing; the neighbour, the control socket and the end of the supervisor do not
notice.
"""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import SocketEntry
from autoforward.core.budget import EVENTS, PATIENCE_S
from tests.conftest import ContainerFactory, Runner
from tests.nightly import times
from tests.product.test_hostile import in_background
from tests.support import agent_wire
from tests.support.containers import PTRACE, Container, eventually
from tests.support.fault_report import Fault
from tests.support.neighbour import Neighbour, memory_of, watched
from tests.support.observing import free_port, logged, row_of, rows, status_json
from tests.support.traffic import Traffic

pytestmark = pytest.mark.faults

ATTEMPTS = times(100, 200)

ONE_DECISION = 150
"""Events of a decision about 128 forwards, and something for what else happens."""

# Stops what speaks for us and says `turns`, one after the other, over and over: in the agent's place, or as the watcher, from
# its second frame on.
SPEAK = """
import os, signal, sys, time, zlib
mark, turns = sys.argv[1].encode()[1:], [zlib.decompress(bytes.fromhex(one)) for one in sys.argv[2].split()]
pause_s, times = float(sys.argv[3]), int(sys.argv[4])

def found():
    for pid in map(int, filter(str.isdigit, os.listdir('/proc'))):
        try:
            if mark in open(f'/proc/{pid}/cmdline', 'rb').read() and pid != os.getpid():
                return pid
        except OSError:
            pass

while True:
    pid = found()
    if pid is None:
        time.sleep(0.05)
        continue
    try:
        time.sleep(1)  # it has told of what there was
        os.kill(pid, signal.SIGSTOP)
        out, number = os.open(f'/proc/{pid}/fd/1', os.O_WRONLY), 1
        while times:
            if turns:
                piece = turns[times % len(turns)]
            else:
                piece = b''.join(b'AF begin %d\\nAF end %d\\n' % (n, n) for n in range(number + 1, number + 201))
                number += 200
            while piece:
                piece = piece[os.write(out, piece):]
            times -= 1
            time.sleep(pause_s)
        time.sleep(1000)
    except OSError:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
        time.sleep(0.1)
"""
FOR_EVER = 1 << 60


Turns = tuple[bytes, ...]


def speak(bad: Container, *turns: bytes, pause_s: float = 0.0, count: int = FOR_EVER) -> None:
    """In the agent's place, a pause after each turn; none: snapshots of the shell watcher, none of them with a socket in it."""
    mark = "/.autoforward/agent-" if turns else "autoforward-watcher"
    packed = " ".join(zlib.compress(said, 9).hex() for said in turns)
    assert len(packed) < 100_000, "more than an argument may have"
    # The mark not as it is: this command line would be taken for ours.
    in_background(bad, ["python3", "-c", SPEAK, f"-{mark}", packed, str(pause_s), str(count)])


def snapshot(seed: int, sockets: int) -> bytes:
    """As many sockets as there may be, each with another inode whenever the seed is another."""
    entries = [SocketEntry("tcp", 10_000 + n, "127.0.0.1", 0, seed * 10_000 + n + 1) for n in range(sockets)]
    pieces = [entries[at : at + 1024] for at in range(0, sockets, 1024)]
    return b"".join(agent_wire.encode_snapshot(piece, more=piece is not pieces[-1]) for piece in pieces)


def names(seed: int) -> bytes:
    return b"".join(agent_wire.encode_process(n + 1, 1, b"server-%d" % (seed * 1000 + n)) for n in range(128))


NAMES_CHANGE = "names that change"
FLOODS: dict[str, tuple[Turns, float]] = {
    "PINGs whose PONGs are not read": ((decoder.encode_ping(b"whatever") * 256,), 0.0),
    "EOFs of streams that are not open": ((decoder.encode_eof(77) * 512,), 0.0),
    "credit for streams that are not open": ((decoder.encode_credit(77, 65_536) * 300,), 0.0),
    # 20 a second: fewer than are a violation.
    "snapshots of 4,096 sockets": ((snapshot(1, 4096) + snapshot(2, 4096),), 0.1),
    # 1,300 a second: fewer than are a violation.
    NAMES_CHANGE: ((snapshot(0, 128) + names(1), snapshot(0, 128) + names(2)), 0.1),
    "snapshots of the shell watcher": ((), 0.0),
}
FAIL = ("PINGs", "EOFs", "credit", "snapshots of the shell")


def attach(run: Runner, bad: Container, turns: Turns) -> None:
    run("autoforward", "attach", bad.name, "--lane", "agent" if turns else "socat", check=0)


@pytest.mark.parametrize("flood", FLOODS)
def test_valid_frames_without_end(
    container: ContainerFactory,
    run: Runner,
    home: Path,
    neighbour: Neighbour,
    fault: Callable[[str], Fault],
    flood: str,
) -> None:
    turns, pause_s = FLOODS[flood]
    bad = container(**PTRACE)
    attach(run, bad, turns)
    since = logged(home)[-1]["seq"]

    def told() -> int:
        """Events from here on. The log holds only the last of them."""
        return int(logged(home)[-1]["seq"]) - since

    began_s = time.monotonic()
    with watched(neighbour) as harm:
        speak(bad, *turns, pause_s=pause_s)
        harm.last(ATTEMPTS)
        if flood.startswith(FAIL):
            session = eventually(lambda: failed(run, bad), timeout_s=6 * PATIENCE_S, what="its session has failed")
            assert "costs too much: it sends" in session["problem"]
        else:
            eventually(lambda: len(rows(run, bad.name)) >= 128, timeout_s=30, what="it is heard all the same")
        burst = EVENTS.burst
        if flood == NAMES_CHANGE:
            # All that it may have at once is spent: what comes from here on comes at the budget's pace.
            eventually(lambda: told() > EVENTS.burst, timeout_s=120, what="it is told of until its budget is spent")
            burst, began_s = told(), time.monotonic()
        harm.last(ATTEMPTS)
        events, took_s = told(), time.monotonic() - began_s
    row = fault(f"container sends {flood}")
    assert events <= burst + EVENTS.rate * took_s + 2 * ONE_DECISION, "one that was being made, and one more"
    row.note(f"{events} events, {EVENTS.rate:.0f} a second from {burst:.0f} on")
    bad.remove()
    eventually(lambda: len(rows(run)) == 1, timeout_s=60, what="all of it is taken away again")
    harm.check(row)


def test_repeated_flood_of_frames_keeps_no_more_memory(
    container: ContainerFactory, run: Runner, neighbour: Neighbour
) -> None:
    """What the largest snapshots leave behind is the allocator's, not a list that grows."""
    turns, pause_s = FLOODS["snapshots of 4,096 sockets"]
    kept = [memory_of(neighbour.supervisor)]
    for _ in range(2):
        bad = container(**PTRACE)
        attach(run, bad, turns)
        speak(bad, *turns, pause_s=pause_s)
        eventually(lambda bad=bad: len(rows(run, bad.name)) >= 128, timeout_s=30, what="it is heard")
        with Traffic(neighbour.host_port) as traffic:
            traffic.wait_attempts(ATTEMPTS // 2)
        bad.remove()
        eventually(lambda: len(rows(run)) == 1, timeout_s=60, what="all of it is taken away again")
        kept.append(memory_of(neighbour.supervisor))
    first, second = kept[1] - kept[0], kept[2] - kept[1]
    assert second < max(3_000_000, first / 2), kept


def failed(run: Runner, bad: Container) -> dict[str, str]:
    found = status_json(run)
    [session] = [one for one in found["sessions"] if one["container_name"] == bad.name]
    return session if session["state"] == "failed" else {}


def test_a_window_of_data_in_pieces_of_two_bytes(
    container: ContainerFactory, run: Runner, neighbour: Neighbour, fault: Callable[[str], Fault]
) -> None:
    """For a client that reads nothing: 33 MB of memory for a megabyte of credit."""
    bad = container(**PTRACE)
    server = bad.start_server(port=free_port())
    run("autoforward", "attach", bad.name, "--lane", "agent", "--no-direct", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    with watched(neighbour) as harm, socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
        client.sendall(b"GET ")  # half a request: the server says nothing
        speak(bad, decoder.encode_data(1, b"xx") * 400, count=(1 << 20) // 2 // 400)
        harm.last(2 * ATTEMPTS)
        assert client.recv(6) == b"xxxxxx"
    row = fault("container sends a megabyte in pieces of two bytes")
    bad.remove()
    harm.check(row)


def test_the_supervisor_ends_in_time_meanwhile(container: ContainerFactory, run: Runner, neighbour: Neighbour) -> None:
    """All of these at once, and connections that stay open, through a hostile container and through the neighbour: they have
    5 s to end by themselves, and nothing else is waited for. What the others sent was followed up to the end, and control did
    not get to it for another 4 s; SIGTERM was lost where the data plane had more to tell than fits the pipe that wakes it."""
    hostile = {flood: container(**PTRACE) for flood in FLOODS}
    for flood, bad in hostile.items():
        attach(run, bad, FLOODS[flood][0])
    pieces = container(**PTRACE)
    server = pieces.start_server(port=free_port())
    run("autoforward", "attach", pieces.name, "--lane", "agent", "--no-direct", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    with (
        socket.create_connection(("127.0.0.1", host_port), timeout=20) as client,
        socket.create_connection(("127.0.0.1", neighbour.host_port), timeout=20) as innocent,
    ):
        client.sendall(b"GET ")
        innocent.sendall(b"GET ")
        for flood, bad in hostile.items():
            turns, pause_s = FLOODS[flood]
            speak(bad, *turns, pause_s=pause_s)
        speak(pieces, decoder.encode_data(1, b"xx") * 400, pause_s=0.02)
        with Traffic(neighbour.host_port) as traffic:
            traffic.wait_attempts(100)
        assert client.recv(6) == b"xxxxxx"
        neighbour.ends_in_time()


def test_a_command_does_not_hang_beside_it(container: ContainerFactory, run: Runner, neighbour: Neighbour) -> None:
    """`attach` of another container hung for as long as the snapshots that had come were worked off."""
    bad, other = container(**PTRACE), container()
    attach(run, bad, ())
    speak(bad)
    with Traffic(neighbour.host_port) as traffic:
        traffic.wait_attempts(100)
    run("autoforward", "attach", other.name, check=0, timeout_s=30.0)
    run("autoforward", "attach", bad.name, check=0, timeout_s=30.0)
    bad.remove()
    eventually(lambda: len(rows(run)) == 1, timeout_s=30, what="it is over at once")

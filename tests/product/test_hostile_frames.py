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

# Stops what speaks for us and says `said`, over and over: in the agent's place, or as the watcher, from its second frame on.
SPEAK = """
import os, signal, sys, time, zlib
mark, said = sys.argv[1].encode()[1:], zlib.decompress(bytes.fromhex(sys.argv[2]))
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
            if said:
                piece = said
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


def speak(bad: Container, said: bytes, *, pause_s: float = 0.0, count: int = FOR_EVER) -> None:
    """In the agent's place; no bytes: snapshots of the shell watcher, none of them with a socket in it."""
    mark = "/.autoforward/agent-" if said else "autoforward-watcher"
    packed = zlib.compress(said, 9).hex()
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


FLOODS: dict[str, tuple[bytes, float]] = {
    "PINGs whose PONGs are not read": (decoder.encode_ping(b"whatever") * 256, 0.0),
    "EOFs of streams that are not open": (decoder.encode_eof(77) * 512, 0.0),
    "credit for streams that are not open": (decoder.encode_credit(77, 65_536) * 300, 0.0),
    # 20 a second: fewer than are a violation.
    "snapshots of 4,096 sockets": (snapshot(1, 4096) + snapshot(2, 4096), 0.1),
    # 1,300 a second: fewer than are a violation.
    "names that change": (snapshot(0, 128) + names(1) + names(2), 0.2),
    "snapshots of the shell watcher": (b"", 0.0),
}
FAIL = ("PINGs", "EOFs", "credit", "snapshots of the shell")


def attach(run: Runner, bad: Container, said: bytes) -> None:
    run("autoforward", "attach", bad.name, "--lane", "agent" if said else "socat", check=0)


@pytest.mark.parametrize("flood", FLOODS)
def test_valid_frames_without_end(
    container: ContainerFactory,
    run: Runner,
    home: Path,
    neighbour: Neighbour,
    fault: Callable[[str], Fault],
    flood: str,
) -> None:
    said, pause_s = FLOODS[flood]
    bad = container(**PTRACE)
    attach(run, bad, said)
    since = logged(home)[-1]["seq"]
    began_s = time.monotonic()
    with watched(neighbour) as harm:
        speak(bad, said, pause_s=pause_s)
        harm.last(ATTEMPTS)
        if flood.startswith(FAIL):
            session = eventually(lambda: failed(run, bad), timeout_s=6 * PATIENCE_S, what="its session has failed")
            assert "costs too much: it sends" in session["problem"]
        else:
            eventually(lambda: len(rows(run, bad.name)) >= 128, timeout_s=30, what="it is heard all the same")
        harm.last(ATTEMPTS)
    row = fault(f"container sends {flood}")
    events = [one for one in logged(home, since=since) if one["containerName"] == bad.name]
    took_s = time.monotonic() - began_s
    assert len(events) <= EVENTS.burst + EVENTS.rate * took_s + 600, "one decision's more"
    row.note(f"{len(events) / took_s:.0f} events a second")
    bad.remove()
    eventually(lambda: len(rows(run)) == 1, timeout_s=60, what="all of it is taken away again")
    harm.check(row)


def test_repeated_flood_of_frames_keeps_no_more_memory(
    container: ContainerFactory, run: Runner, neighbour: Neighbour
) -> None:
    """What the largest snapshots leave behind is the allocator's, not a list that grows."""
    said, pause_s = FLOODS["snapshots of 4,096 sockets"]
    kept = [memory_of(neighbour.supervisor)]
    for _ in range(2):
        bad = container(**PTRACE)
        attach(run, bad, said)
        speak(bad, said, pause_s=pause_s)
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
    """All of these at once."""
    hostile = {flood: container(**PTRACE) for flood in FLOODS}
    for flood, bad in hostile.items():
        attach(run, bad, FLOODS[flood][0])
    pieces = container(**PTRACE)
    server = pieces.start_server(port=free_port())
    run("autoforward", "attach", pieces.name, "--lane", "agent", "--no-direct", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
        client.sendall(b"GET ")
        for flood, bad in hostile.items():
            said, pause_s = FLOODS[flood]
            speak(bad, said, pause_s=pause_s)
        speak(pieces, decoder.encode_data(1, b"xx") * 400, pause_s=0.02)
        with Traffic(neighbour.host_port) as traffic:
            traffic.wait_attempts(100)
        assert client.recv(6) == b"xxxxxx"
    neighbour.ends_in_time()  # a connection that is open would have five seconds to end by itself


def test_a_command_does_not_hang_beside_it(container: ContainerFactory, run: Runner, neighbour: Neighbour) -> None:
    """`attach` of another container hung for as long as the snapshots that had come were worked off."""
    bad, other = container(**PTRACE), container()
    attach(run, bad, b"")
    speak(bad, b"")
    with Traffic(neighbour.host_port) as traffic:
        traffic.wait_attempts(100)
    run("autoforward", "attach", other.name, check=0, timeout_s=30.0)
    run("autoforward", "attach", bad.name, check=0, timeout_s=30.0)
    bad.remove()
    eventually(lambda: len(rows(run)) == 1, timeout_s=30, what="it is over at once")

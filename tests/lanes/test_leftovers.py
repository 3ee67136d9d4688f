"""Nothing of ours stays behind in a container, whatever ends: the client, the server, the supervisor. Counted from inside.

Zombies count: PID 1 of these containers is `sleep`, which reaps nobody.
"""

from __future__ import annotations

import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autoforward.engine.pool import ENGINE_THREADS
from autoforward.lanes.scripts import relay_environment, watcher_argv
from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.conformance import dial, direct_sockets, is_watcher, read_all, relays_in
from tests.support.containers import PTRACE, Container, Process, Server, eventually
from tests.support.observing import rows

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("always_direct")]
RESET = struct.pack("ii", 1, 0)
LANES = {"agent": "full", "socat": "full", "nc": "openbsd", "devtcp": "devtcp"}
AGENTS_OWN_SOCKETS = 1
"""It asks the kernel for listeners through one."""

LIMIT_S = 2.0
"""What the project promises: that long after the end of whatever held it, nothing is left."""


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def attach(run: Runner, container: Container, server: Server, lane: str) -> int:
    """The host port of the server."""
    run("autoforward", "attach", container.name, "--lane", lane, check=0)

    def host_port() -> int:
        active = [row for row in rows(run) if row["port"] == server.port and row["status"] == "active"]
        return int(active[0]["localPort"]) if active else 0

    return eventually(host_port)


def supervisor(home: Path) -> psutil.Process:
    process = supervisor_of(home)
    assert process is not None
    return process


def all_of_ours(container: Container) -> list[Process]:
    return container.processes(of_tests=False)


def carrying(container: Container, lane: str) -> list[Process]:
    """What carries connections: relays, or the one agent."""
    return all_of_ours(container) if lane == "agent" else relays_in(container)


def still_carried(container: Container, lane: str) -> list[Process]:
    """Relays that are left; of the agent, which stays, whether it holds a connection.

    It has one socket of its own, may listen for direct connections, and the trunk stays as long as it does.
    """
    if lane != "agent":
        return relays_in(container)
    [agent] = all_of_ours(container)
    code, said = container.exec(["ls", "-l", f"/proc/{agent.pid}/fd"], user="root")
    assert code == 0, said
    rows = [row.split() for row in container.shell("cat /proc/net/tcp").splitlines()[1:]]
    listening = {row[9] for row in rows if row[3] == "0A"}
    trunk = sorted(direct_sockets(container))[:1]
    sockets = set(re.findall(r"socket:\[(\d+)\]", said)) - listening - set(trunk)
    return [agent] if len(sockets) > AGENTS_OWN_SOCKETS else []


def within_the_limit(look: Callable[[], list[Process]]) -> None:
    """Fails unless there is nothing once the limit has passed. Looking takes an exec of its own, so look only then."""
    ended_s = time.monotonic()
    threading.Event().wait(LIMIT_S)
    left = look()
    assert not left, (time.monotonic() - ended_s, left)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def open_connections(host_port: int, count: int) -> list[socket.socket]:
    """Connections whose relays have connected to an `ignores-eof` server (the container's table says so)."""
    clients = [dial(host_port) for _ in range(count)]
    for client in clients:
        client.sendall(b"hello")
    return clients


def wait_connected(container: Container, server: Server, count: int) -> None:
    """Wait until the server has `count` established connections."""
    local = f":{server.port:04X}"

    def connected() -> bool:
        rows = [row.split() for row in container.shell("cat /proc/net/tcp /proc/net/tcp6").splitlines()]
        # slot, local address, remote address, state (01 is established)
        return sum(1 for row in rows if row[1].endswith(local) and row[3] == "01") >= count

    eventually(connected, timeout_s=30)


def test_two_hundred_connections_half_of_them_reset(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    one = container(LANES[lane], **PTRACE)
    server = one.start_server("echo")
    host_port = attach(run, one, server, lane)
    descriptors = supervisor(home).num_fds()
    problems: list[str] = []
    todo = list(range(200))
    choose = random.Random(200)
    sizes = [choose.randrange(1000, 300_000) for _ in todo]

    def work() -> None:
        while todo:
            number = todo.pop()
            message = bytes([number % 251]) * sizes[number]
            client = dial(host_port)
            if number % 2:
                # Reset in mid-stream: something has come back, much is still on its way in both directions.
                client.sendall(message[:100])
                if client.recv(1) != message[:1]:
                    problems.append(f"{number}: no echo")
                client.setblocking(False)
                try:
                    client.send(message)
                except BlockingIOError:
                    pass
                reset(client)
                continue
            sender = threading.Thread(target=client.sendall, args=(message,))
            sender.start()
            got = b""
            while len(got) < len(message):
                piece = client.recv(1 << 16)
                if not piece:
                    break
                got += piece
            sender.join()
            if got != message:
                problems.append(f"{number}: {len(got)} of {len(message)} bytes came back")
            client.close()

    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(100)
    assert problems == []
    within_the_limit(lambda: still_carried(one, lane))
    assert [process.state for process in all_of_ours(one) if is_watcher(process)], "the watcher is still there"
    # Each thread that talks to the engine keeps its connection to it.
    limit = descriptors + ENGINE_THREADS
    eventually(lambda: supervisor(home).num_fds() <= limit, what="the supervisor's descriptors are closed")


@pytest.mark.timeout(180)
def test_kill_9_of_the_supervisor_leaves_nothing(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    """Also with open connections to a server that ignores the end of its input."""
    one = container(LANES[lane], **PTRACE)
    server = one.start_server("ignores-eof")
    clients = open_connections(attach(run, one, server, lane), 10)
    wait_connected(one, server, 10)
    assert len(carrying(one, lane)) >= (1 if lane == "agent" else 10)
    process = supervisor(home)
    process.kill()
    within_the_limit(lambda: all_of_ours(one))
    for client in clients:
        client.close()


def test_supervisor_told_to_end_leaves_nothing(container: ContainerFactory, run: Runner, home: Path, lane: str) -> None:
    """It drains first: a connection that is answered within the drain is answered in full."""
    one = container(LANES[lane], **PTRACE)
    server = one.start_server("late-answer", delay_s=1.0)
    host_port = attach(run, one, server, lane)
    stuck = one.start_server("ignores-eof")
    stuck_port = attach(run, one, stuck, lane)
    process = supervisor(home)
    clients = open_connections(stuck_port, 3)
    wait_connected(one, stuck, 3)
    asking = dial(host_port)
    asking.sendall(b"question")
    wait_connected(one, server, 1)
    if lane != "devtcp":  # which cannot half-close: this server never answers it
        asking.shutdown(socket.SHUT_WR)
    process.send_signal(signal.SIGTERM)
    if lane != "devtcp":
        assert read_all(asking).startswith(b"got 8 ")
    eventually(lambda: supervisor_of(home) is None, timeout_s=20)
    within_the_limit(lambda: all_of_ours(one))
    for client in clients:
        with pytest.raises(ConnectionResetError):
            read_all(client)
        client.close()
    asking.close()


def test_client_that_closes_while_its_server_ignores_eof(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    """The one who only half-closed at the same time keeps its relay."""
    one = container(LANES[lane], **PTRACE)
    server = one.start_server("ignores-eof")
    host_port = attach(run, one, server, lane)
    half, *closing = open_connections(host_port, 4)
    wait_connected(one, server, 4)
    half.shutdown(socket.SHUT_WR)
    for client in closing:
        client.close()

    def one_is_left() -> bool:
        return [row["connections"]["active"] for row in rows(run)] == [1]

    eventually(one_is_left, timeout_s=10)
    half.settimeout(1.0)
    with pytest.raises(TimeoutError):
        half.recv(1)
    assert carrying(one, lane)
    half.close()
    eventually(lambda: not still_carried(one, lane), timeout_s=10)


def test_server_that_dies_takes_its_relays_along(container: ContainerFactory, run: Runner, lane: str) -> None:
    one = container(LANES[lane], **PTRACE)
    server = one.start_server("ignores-eof")
    clients = open_connections(attach(run, one, server, lane), 5)
    wait_connected(one, server, 5)
    assert still_carried(one, lane)
    server.stop(signal.SIGKILL)
    if lane == "agent":
        # It keeps half-close in both directions: the client is told, and could send on until it is told that nobody reads.
        for client in clients:
            client.settimeout(LIMIT_S)
            assert client.recv(1) == b""
            client.sendall(b"anybody there?")
    within_the_limit(lambda: still_carried(one, lane))
    for client in clients:
        client.close()


def test_address_that_answered_is_dialled_alone(container: ContainerFactory, run: Runner) -> None:
    """A server on `::` may be reached on 127.0.0.1 or on ::1: trying both takes more processes, so that is done once."""
    one = container("full", sysctls={"net.ipv6.conf.all.disable_ipv6": "0"})
    server = one.start_server("ignores-eof", bind="::")
    host_port = attach(run, one, server, "socat")
    first = open_connections(host_port, 1)
    wait_connected(one, server, 1)
    trying_both = relays_in(one)
    assert len(trying_both) > 1
    later = open_connections(host_port, 3)
    wait_connected(one, server, 4)
    assert [process.name for process in relays_in(one) if process not in trying_both] == ["socat"] * 3
    # The server is another one now, on the other address: found again, and no client is refused meanwhile.
    server.stop()
    moved = one.start_server("echo", bind="::1", port=server.port)
    client = dial(host_port)
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    for connection in (client, *first, *later):
        connection.close()
    assert moved.port == server.port


def test_relay_that_starts_as_the_watcher_ends_is_swept_too(container: ContainerFactory) -> None:
    """The supervisor may die between asking for a process and its start: it appears after the first look for relays."""
    one = container("full", **PTRACE)
    session = "a" * 32
    carried = " ".join(f"{name}={value}" for name, value in relay_environment("b" * 32, session).items())
    # The pause between the two looks is where the late one comes in.
    nap = f"#!/bin/sh\nif [ $1 = 0.4 ]; then env {carried} /bin/sleep 1000 & fi\nexec /bin/sleep $1\n"
    one.shell(f"mkdir /tmp/bin; printf '{nap}' >/tmp/bin/sleep; chmod +x /tmp/bin/sleep")
    argv = ["docker", "exec", "-i", "-e", "PATH=/tmp/bin:/usr/bin:/bin", one.id, *watcher_argv(session, 0.5)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        assert watcher.stdout.readline().startswith(b"AF hello")
        watcher.stdin.close()
        assert watcher.wait(20) == 0
    # The test started it, not its relay's shell, so that nobody reaps it.
    [late] = [process for process in one.processes() if process.pid != 1]
    assert (late.name, late.state) == ("sleep", "Z")

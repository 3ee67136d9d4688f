"""What every lane and every way to an engine has to do, through the product: container, watcher, relay, host socket.

Not collected here: a test module imports the tests, and has a fixture `attached` of its own that says over what.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import Container, Process, Server, eventually
from tests.support.emulation import EMULATORS
from tests.support.observing import rows, status_json

MIB = 1 << 20
TIMEOUT_S = 60.0
IPV6_ON = {"net.ipv6.conf.all.disable_ipv6": "0"}


@dataclass(frozen=True)
class Lane:
    """A lane as an image offers it. `end_s` is what the project promises for a server that closes first."""

    name: str
    image: str
    lane: str
    dialect: str
    end_s: float
    half_close: bool = True
    ipv6: bool = True
    confirms: bool = True
    trunk: bool = False
    """There is a trunk before the test begins."""


def direct_sockets(container: Container) -> set[str]:
    """Inodes of its TCP connections at its own address: nothing that tests start there has any."""
    octets = reversed(container.address().split("."))
    own = "".join(f"{int(octet):02X}" for octet in octets)
    rows = [line.split() for line in container.shell("cat /proc/net/tcp").splitlines()[1:]]
    return {row[9] for row in rows if row[1].startswith(f"{own}:") and row[3] == "01"}


def direct_connections(container: Container) -> int:
    return len(direct_sockets(container))


def is_watcher(process: Process) -> bool:
    program = process.command[:1]
    if program and program[0].endswith(EMULATORS):
        program = process.command[1:2]
    return "autoforward-watcher" in process.command or "/.autoforward/agent-" in "".join(program)


def relays_in(container: Container) -> list[Process]:
    """What there is of ours beyond the watcher, its loop, and what these two run; zombies included."""
    found = container.processes(of_tests=False)
    watchers = {process.pid for process in found if is_watcher(process)}
    return [process for process in found if process.pid not in watchers and process.ppid not in watchers]


class Attached:
    """A container under the lane that is tested, with servers, and the product attached to it."""

    def __init__(
        self, lane: Lane, container: ContainerFactory, run: Runner, more_options: Mapping[str, Any] | None = None
    ) -> None:
        """`more_options` are for the container, as docker-py has them."""
        self.lane = lane
        self._run = run
        options: dict[str, Any] = {"sysctls": IPV6_ON, **(more_options or {})}
        # busybox has no python: its servers run in a neighbour that shares its network.
        self.servers = container("full" if lane.image == "busybox" else lane.image, **options)
        self.container = (
            container("busybox", network=f"container:{self.servers.id}") if lane.image == "busybox" else self.servers
        )

    def attach(self, *specs: str) -> None:
        first = self.servers.start_server("echo") if self.lane.trunk else None
        env = {"AUTOFORWARD_DIRECT": "true"} if self.lane.trunk else {}
        self._run("autoforward", "attach", self.container.name, *specs, "--lane", self.lane.lane, env=env, check=0)
        [session] = status_json(self._run)["sessions"]
        said = session["lane"]
        assert (said["name"], said["dialect"]) == (self.lane.lane, self.lane.dialect)
        assert (said["half_close"], said["ipv6"]) == (self.lane.half_close, self.lane.ipv6)
        if first is not None:
            with dial(self.host_port(first)) as client:
                client.sendall(b"the first")
                assert client.recv(1)
            eventually(lambda: direct_connections(self.container) == 1, what="the trunk")

    def row(self, container_port: int) -> dict[str, Any]:
        found = [row for row in rows(self._run) if row["port"] == container_port]
        assert len(found) == 1, "one forward of it"
        return dict(found[0])

    def host_port(self, server: Server) -> int:
        """Where `server` is reachable on this host, once it is."""

        def forwarded() -> int:
            row = self.row(server.port)
            assert row["status"] == "active"
            return int(row["localPort"])

        return eventually(forwarded, timeout_s=TIMEOUT_S)

    def wait_until_no_relay_is_left(self, timeout_s: float = 10.0) -> None:
        def none_left() -> bool:
            left = relays_in(self.container)
            assert not left, left
            return True

        eventually(none_left, timeout_s=timeout_s)


def dial(host_port: int, host: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection((host, host_port), timeout=TIMEOUT_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def test_half_close_is_kept(attached: Attached) -> None:
    """A server that reads to EOF and answers 2 s later is answered in full."""
    server = attached.servers.start_server("late-answer", delay_s=2.0)
    attached.attach()
    question = os.urandom(300_000)
    with dial(attached.host_port(server)) as client:
        client.sendall(question)
        client.shutdown(socket.SHUT_WR)
        if attached.lane.half_close:
            assert read_all(client).decode() == f"got 300000 {hashlib.sha256(question).hexdigest()}\n"
        else:
            # It says that it cannot, and then does not pretend: the server waits on, and so does the client.
            client.settimeout(4.0)
            with pytest.raises(TimeoutError):
                client.recv(1)
    attached.wait_until_no_relay_is_left()


def test_server_that_speaks_and_closes_first_ends_the_relay(attached: Attached) -> None:
    """The server speaks first, too; the client says nothing and stays, and yet the relay is gone, and no byte is lost."""
    server = attached.servers.start_server("closes-first", text="bye" * 30_000)
    text = "bye" * 30_000 + "\n"
    attached.attach()
    with dial(attached.host_port(server)) as client:
        received = b""
        while len(received) < len(text):
            received += client.recv(1 << 20)
        complete_s = time.monotonic()
        assert client.recv(1) == b""
        took_s = time.monotonic() - complete_s
        assert received == text.encode()
        assert took_s <= attached.lane.end_s
        attached.wait_until_no_relay_is_left()


def test_sixty_four_mebibytes_each_way(attached: Attached) -> None:
    server = attached.servers.start_server("sha")
    attached.attach()
    host_port = attached.host_port(server)
    upward = os.urandom(64 * MIB)
    with dial(host_port) as client:
        client.sendall(b"put %d\n" % len(upward) + upward)
        assert read_all(client).decode() == hashlib.sha256(upward).hexdigest()
    with dial(host_port) as client:
        client.sendall(b"get %d\n" % (64 * MIB))
        downward = read_all(client)
    assert len(downward) == 64 * MIB + 64
    assert hashlib.sha256(downward[: 64 * MIB]).hexdigest() == downward[64 * MIB :].decode()
    count = attached.row(server.port)["bytes"]
    assert (count["in"] > 64 * MIB, count["out"] > 64 * MIB) == (True, True)


def test_fifty_connections_at_once(attached: Attached) -> None:
    server = attached.servers.start_server("echo")
    attached.attach()
    host_port = attached.host_port(server)
    clients = [dial(host_port) for _ in range(50)]
    messages = [os.urandom(20_000) for _ in clients]
    answers: dict[int, bytes] = {}

    def talk(number: int) -> None:
        with clients[number] as client:
            client.sendall(messages[number])
            got = b""
            while len(got) < len(messages[number]):
                piece = client.recv(1 << 16)
                if not piece:
                    break
                got += piece
            answers[number] = got

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert [answers.get(number) == messages[number] for number in range(50)] == [True] * 50
    attached.wait_until_no_relay_is_left()


def test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason(attached: Attached) -> None:
    # A name that the engine does not know: it could be any host's.
    attached.servers.shell("echo 127.0.0.1 afelse >> /etc/hosts")
    attached.attach("afelse:3999")
    row = attached.row(3999)
    assert row["status"] == "active"
    with pytest.raises(ConnectionResetError), dial(row["localPort"]) as client:
        # Whatever the tool did with the question: no answer and an EOF would be a success that is none.
        read_all(client)

    def told() -> bool:
        row = attached.row(3999)
        assert "refused" in (row["reason"] or "").lower()
        assert row["connections"]["refused"] == 1
        return True

    eventually(told)
    attached.wait_until_no_relay_is_left()

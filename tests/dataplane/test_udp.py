"""UDP on a real engine: datagrams of every size from several clients, detection, declared ports with nobody behind them."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import Container, eventually, fetch
from tests.support.observing import free_port, row_of, rows, status_json, wait_event, wait_steps

pytestmark = pytest.mark.docker

IPV6_ON = {"net.ipv6.conf.all.disable_ipv6": "0"}
SIZES = (1, 2, 511, 1200, 1472, 1473, 4096, 8999, 9000)

# Answers each datagram with its own bytes in reverse, to where it came from.
_MIRROR = """
import socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
sock.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    data, peer = sock.recvfrom(65535)
    sock.sendto(data[::-1], peer)
"""


@contextlib.contextmanager
def mirror(app: Container, container_port: int, bind: str = "127.0.0.1") -> Iterator[None]:
    """A UDP server; gone afterwards."""
    command = ["docker", "exec", app.id, "python3", "-c", _MIRROR, bind, str(container_port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            client.kill()
            ending = [row.pid for row in app.processes() if row.command[-2:] == (bind, str(container_port))]
            app.shell(f"kill -9 {' '.join(map(str, ending))}")
            eventually(lambda: not {row.pid for row in app.processes()} & set(ending))


def client_of(host_port: int, host: str = "127.0.0.1") -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, host_port))
    sock.settimeout(2.0)
    return sock


def exchange(client: socket.socket, message: bytes, *, tries: int = 5) -> bytes:
    """The answer to one datagram. UDP may lose one; what comes late, to an earlier try, is the same."""
    for _ in range(tries):
        with contextlib.suppress(TimeoutError):
            client.send(message)
            return client.recv(65535)
    raise AssertionError(f"no answer to {len(message)} bytes")


@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_datagrams_of_every_size_from_several_clients(container: ContainerFactory, run: Runner, bind: str) -> None:
    app = container(sysctls=IPV6_ON)
    port = free_port()
    with mirror(app, port, bind):
        run("autoforward", "attach", app.name, f"{port}/udp", check=0)
        row = row_of(run, port, status="active")
        assert (row["transport"], row["lane"]) == ("udp", "agent")
        problems: list[str] = []

        def talk(number: int) -> None:
            dice = random.Random(number)
            host = ("127.0.0.1", "::1")[number % 2]
            with client_of(row["localPort"], host) as client:
                for size in (*SIZES, *(dice.randint(1, 9000) for _ in range(40))):
                    # Its own number in front and behind: nobody else's answer looks like it.
                    message = (bytes([number]) + dice.randbytes(size))[:size]
                    if (got := exchange(client, message)) != message[::-1]:
                        problems.append(f"client {number}: {size} bytes sent, {len(got)} others came back")

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == []
        assert not any(thread.is_alive() for thread in threads)
        counted = row_of(run, port)
        assert counted["connections"]["total"] == 8, "one flow for each client"
        assert counted["bytes"]["in"] == counted["bytes"]["out"] > 8 * sum(SIZES)


def test_largest_datagram_and_the_empty_one(container: ContainerFactory, run: Runner) -> None:
    app = container()
    port = free_port()
    with mirror(app, port):
        run("autoforward", "attach", app.name, f"{port}/udp", check=0)
        with client_of(row_of(run, port, status="active")["localPort"]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            message = os.urandom(65_507)
            assert exchange(client, message) == message[::-1]
            assert exchange(client, b"") == b""


def test_declared_port_without_a_server(container: ContainerFactory, run: Runner) -> None:
    """Nothing can be refused; nobody waits, TCP goes on, and the server that comes later answers on the same port."""
    app = container()
    port = free_port()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, f"{port}/udp", check=0)
    host_port = row_of(run, port, status="active")["localPort"]
    with client_of(host_port) as client:
        for number in range(50):
            client.send(b"anybody? %d" % number)
        assert fetch(row_of(run, server.port, status="active")["url"]) == "hello\n"
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(2.0)
        with mirror(app, port):
            assert exchange(client, b"now") == b"won"
        # The server goes and another comes: the same client, the same port.
        client.send(b"into the void")
        with mirror(app, port):
            assert exchange(client, b"again") == b"niaga"
    assert row_of(run, port)["localPort"] == host_port


def test_detected_udp_is_shown_and_forwarded_on_demand(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    run("autoforward", "attach", app.name, check=0)
    port = free_port()
    with mirror(app, port):
        row = row_of(run, port, status="ignored")
        assert (row["transport"], row["localPort"], row["autoForwarded"]) == ("udp", None, False)
        assert "--auto-udp" in row["reason"]
        assert f"{port}/udp" in run("autoforward", "list", check=0).stdout
        event = wait_event(home, "ignored", port)
        assert (event["transport"], event["reason"]) == ("udp", row["reason"])

        run("autoforward", "attach", app.name, "--auto-udp", check=0)
        row = row_of(run, port, status="active")
        event = wait_event(home, "forwarded", port)
        assert (event["transport"], event["localPort"]) == ("udp", row["localPort"])
        with client_of(row["localPort"]) as client:
            assert exchange(client, b"hello") == b"olleh"
    wait_event(home, "unforwarded", port, since=event["seq"])
    # One row ends before the other begins.
    wait_steps(home, port, ["ignored", "unforwarded", "forwarded", "unforwarded"])
    assert rows(run) == []


def test_lane_without_udp_says_so(container: ContainerFactory, run: Runner) -> None:
    app = container()
    port = free_port()
    done = run("autoforward", "attach", app.name, f"{port}/udp", "--lane", "socat")
    row = row_of(run, port, status="failed")
    assert "UDP" in row["reason"]
    assert row["reason"] in done.stderr
    [session] = status_json(run)["sessions"]
    assert session["lane"]["udp"] is False

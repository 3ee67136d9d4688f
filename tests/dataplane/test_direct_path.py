"""Bulk on the engine: it goes over the direct path, whole both ways, and over the exec stream where it may not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.conformance import dial
from tests.support.containers import Container, eventually
from tests.support.observing import free_port, row_of, rows

pytestmark = pytest.mark.docker

SIZE = 64 << 20
PIECE = os.urandom(1 << 20)


def listening_on_its_address(app: Container) -> bool:
    """Whether something listens on the container's own address: nothing that tests start here does."""
    octets = reversed(app.address().split("."))
    hexed = "".join(f"{int(octet):02X}" for octet in octets)
    table = app.shell("cat /proc/net/tcp")
    return any(f" {hexed}:" in line and line.split()[3] == "0A" for line in table.splitlines()[1:])


def echo_of(host_port: int) -> str:
    """The SHA-256 of what an echo server sends back while we send SIZE bytes to it."""
    got = hashlib.sha256()
    with dial(host_port) as client:

        def send() -> None:
            for _ in range(SIZE // len(PIECE)):
                client.sendall(PIECE)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        left = SIZE
        while left and (piece := client.recv(min(1 << 20, left))):
            got.update(piece)
            left -= len(piece)
        thread.join(60)
    return got.hexdigest()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("flags", [[], ["--no-direct"]], ids=["direct", "no-direct"])
def test_bulk_both_ways_is_whole(
    container: ContainerFactory, network: Callable[[], str], run: Runner, flags: list[str]
) -> None:
    app = container(network=network())
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", *flags, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    assert not listening_on_its_address(app), "before anybody asked"
    assert echo_of(host_port) == hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
    assert listening_on_its_address(app) == (not flags)
    count = eventually(lambda: [r for r in rows(run) if r["port"] == server.port and not r["connections"]["active"]])
    assert (count[0]["bytes"]["in"], count[0]["bytes"]["out"]) == (SIZE, SIZE)
    assert [row["port"] for row in rows(run)] == [server.port], "the agent's own listener is nobody's port"


@pytest.mark.timeout(180)
def test_a_container_without_an_address_has_the_exec_stream(container: ContainerFactory, run: Runner) -> None:
    app = container(network_mode="none")
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    assert echo_of(host_port) == hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()


@pytest.mark.timeout(180)
def test_the_flag_is_taken_over_by_the_next_attach(
    container: ContainerFactory, network: Callable[[], str], run: Runner
) -> None:
    app = container(network=network())
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", "--no-direct", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    assert echo_of(host_port) == hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
    assert listening_on_its_address(app)


HOARD = """
import fcntl, os, sys
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
hoarded = []
while not hoarded or fcntl.fcntl(hoarded[-1][0], fcntl.F_GETPIPE_SZ) > 8192:
    hoarded.append(os.pipe())
    try:
        fcntl.fcntl(hoarded[-1][0], fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        pass
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(180)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be the container's user on the host")
def test_a_user_who_has_too_much_in_pipes_already(
    container: ContainerFactory, network: Callable[[], str], run: Runner
) -> None:
    """The kernel counts the pipes of a user everywhere, outside of the container too, and then gives out tiny ones."""
    user = 54321
    with subprocess.Popen(
        [sys.executable, "-c", HOARD, str(user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as hoarder:
        assert hoarder.stdout is not None
        assert hoarder.stdout.readline() == "ready\n"
        app = container(user=f"{user}:{user}", network=network())
        server = app.start_server("echo", port=free_port())
        run("autoforward", "attach", app.name, "--lane", "agent", check=0)
        host_port = row_of(run, server.port, status="active")["localPort"]
        assert echo_of(host_port) == hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
        assert listening_on_its_address(app)

"""Connections on the engine: past it from the second on, over it where they must, and on when the container's network goes."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable
from itertools import count

import docker
import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.conformance import dial, direct_connections
from tests.support.containers import eventually
from tests.support.observing import free_port, row_of, rows

pytestmark = pytest.mark.docker


def is_echoed(client: socket.socket, words: bytes) -> bool:
    try:
        client.sendall(words)
        got = b""
        while len(got) < len(words) and (piece := client.recv(len(words) - len(got))):
            got += piece
    except OSError:
        return False
    return got == words


def answers(host_port: int, words: bytes) -> bool:
    with dial(host_port) as client:
        return is_echoed(client, words)


@pytest.mark.timeout(120)
def test_many_connections_are_one_in_the_container(
    container: ContainerFactory, network: Callable[[], str], run: Runner
) -> None:
    app = container(network=network())
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    assert direct_connections(app) == 0, "before anybody connected"
    assert answers(host_port, b"first")
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    clients = [dial(host_port) for _ in range(50)]
    for number, client in enumerate(clients):
        assert is_echoed(client, b"%d" % number)
    assert direct_connections(app) == 1
    for client in clients:
        client.close()
    assert [row["port"] for row in rows(run)] == [server.port], "the trunk is nobody's port"


@pytest.mark.timeout(120)
def test_no_direct_is_no_trunk_either(container: ContainerFactory, network: Callable[[], str], run: Runner) -> None:
    app = container(network=network())
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", "--no-direct", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    for number in range(3):
        assert answers(host_port, b"%d" % number)
    assert direct_connections(app) == 0


@pytest.mark.timeout(180)
def test_the_containers_network_goes_and_comes_back(
    container: ContainerFactory, network: Callable[[], str], run: Runner, engine: docker.DockerClient
) -> None:
    """What was on the trunk is reset, what comes after it goes over the engine: nothing has to be attached again."""
    app = container(network=(name := network()))
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    assert answers(host_port, b"first")
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    numbers = count()
    with dial(host_port) as held:
        assert is_echoed(held, b"held")
        bridge = engine.networks.get(name)
        bridge.disconnect(app.id)
        held.settimeout(60)
        assert not is_echoed(held, b"nobody gets this"), "the container has no network"
    eventually(lambda: answers(host_port, b"%d" % next(numbers)), timeout_s=30, what="connections over the engine")
    bridge.connect(app.id)
    assert answers(host_port, b"last")
    row = row_of(run, server.port, status="active")
    assert row["localPort"] == host_port


NEWER = (
    "accept4",
    "close_range",
    "dup3",
    "epoll_create1",
    "epoll_pwait",
    "epoll_pwait2",
    "getrandom",
    "ppoll",
    "splice",
)
"""What an older kernel, gVisor or a seccomp profile may not have, as far as the engine starts containers without."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_newer_system_calls_are_forbidden_older_ones_do(
    container: ContainerFactory, network: Callable[[], str], run: Runner, number: int
) -> None:
    forbidden = {"names": NEWER, "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    profile = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [forbidden]})
    app = container(network=network(), security_opt=[f"seccomp={profile}"])
    port = free_port()
    app.shell(f"socat TCP-LISTEN:{port},bind=127.0.0.1,fork EXEC:cat </dev/null >/dev/null 2>&1 &")
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    host_port = row_of(run, port, status="active")["localPort"]
    assert answers(host_port, b"first")
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    bulk = bytes(range(256)) * (4 << 12)
    with dial(host_port) as client:
        sender = threading.Thread(target=client.sendall, args=(bulk,))
        sender.start()
        got = b""
        while len(got) < len(bulk) and (piece := client.recv(1 << 20)):
            got += piece
        sender.join()
        assert got == bulk
        assert direct_connections(app) == 2, "bulk has a connection of its own, without splice too"

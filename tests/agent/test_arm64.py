"""The agent for arm64, in a container of that architecture; on another machine both run under an emulator.

What every lane must do it does in test_lanes.py; here is what is the architecture's own, and what an emulator may lack.
"""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import psutil
import pytest

from autoforward.lanes.agent_install import agent_binary
from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.dataplane.test_udp import client_of, exchange, mirror
from tests.images.recipes import ARM64
from tests.lanes.test_leftovers import RESET, open_connections, wait_connected, within_the_limit
from tests.support.conformance import dial, is_watcher, read_all
from tests.support.containers import Container, Process, Server, eventually, fetch
from tests.support.observing import free_port, row_of, status_json, wait_event, wait_steps

ELF_MACHINE_AARCH64 = 183
pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("arm64")]


def attach(run: Runner, app: Container, *specs: str) -> None:
    """No lane is asked for."""
    run("autoforward", "attach", app.name, *specs, check=0)
    [session] = status_json(run)["sessions"]
    assert session["lane"]["name"] == "agent", session["lane"]["note"]


def agents(app: Container) -> list[Process]:
    return [process for process in app.processes(of_tests=False) if is_watcher(process) or process.state == "Z"]


def test_agent_for_the_architecture_of_the_image_is_chosen(container: ContainerFactory, run: Runner) -> None:
    """An amd64 machine's kernel would run the one for amd64 in that container as well."""
    app = container(ARM64)
    attach(run, app)
    [name] = app.shell("ls /tmp/.autoforward").split()
    program = agent_binary("arm64")
    assert int.from_bytes(program[18:20], "little") == ELF_MACHINE_AARCH64
    code, said = app.exec(["python3", "-c", f"print(open('/tmp/.autoforward/{name}', 'rb').read().hex())"])
    assert (code, bytes.fromhex(said)) == (0, program)
    assert len(agents(app)) == 1


def test_listener_is_seen_and_its_end(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container(ARM64)
    attach(run, app)
    server = app.start_server("http", text="hello from arm64")
    row = row_of(run, server.port, status="active")
    assert row["lane"] == "agent"
    assert fetch(row["url"]) == "hello from arm64\n"
    server.stop()
    wait_event(home, "unforwarded", server.port)
    wait_steps(home, server.port, ["forwarded", "unforwarded"])


def test_datagrams(container: ContainerFactory, run: Runner) -> None:
    app = container(ARM64)
    port = free_port()
    with mirror(app, port):
        attach(run, app, f"{port}/udp")
        with client_of(row_of(run, port, status="active")["localPort"]) as client:
            for size in (1, 1472, 1473, 9000):
                message = bytes(range(256)) * 36
                assert exchange(client, message[:size]) == message[:size][::-1]


def test_server_that_is_not_up_is_a_refusal(container: ContainerFactory, run: Runner) -> None:
    app = container(ARM64)
    port = free_port()
    attach(run, app, str(port))
    row = row_of(run, port, status="waiting")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", row["localPort"] or port), timeout=10)
    server = app.start_server("closes-first", port=port, text="up")
    with dial(row_of(run, port, status="active")["localPort"]) as client:
        assert read_all(client) == b"up\n"
    server.stop(signal.SIGKILL)
    row_of(run, port, status="waiting")


def test_agent_for_arm64_leaves_no_process_and_no_connection(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    """Clients that reset leave no connection, a supervisor that is killed leaves no agent."""
    app = container(ARM64)
    server = app.start_server("ignores-eof")
    attach(run, app)
    clients = open_connections(row_of(run, server.port, status="active")["localPort"], 10)
    wait_connected(app, server, 10)
    for client in clients[:5]:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
    eventually(lambda: connections_of(app, server) == 5)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    psutil.wait_procs([supervisor], timeout=10)
    within_the_limit(lambda: agents(app))
    for client in clients[5:]:
        client.close()


def connections_of(app: Container, server: Server) -> int:
    """How many connections to the server the container's kernel has, whose other end is still there."""
    rows = [row.split() for row in app.shell("cat /proc/net/tcp").splitlines()]
    return sum(1 for row in rows if row[2].endswith(f":{server.port:04X}") and row[3] == "01")

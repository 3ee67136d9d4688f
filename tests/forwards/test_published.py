"""Ports that the engine publishes itself, containers on the host's network, containers without any lane."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import eventually, fetch, is_refused
from tests.support.observing import free_port, logged, names, registry, row_of, rows, wait_steps

pytestmark = pytest.mark.docker


def test_published_port_is_a_row_with_its_address(container: ContainerFactory, run: Runner, home: Path) -> None:
    container_port, host_port = free_port(), free_port()
    app = container(ports={f"{container_port}/tcp": ("127.0.0.1", host_port)})
    app.start_server(bind="0.0.0.0", port=container_port)
    said = run("autoforward", "attach", app.name, check=0).stderr
    assert f"Published  {app.name}:{container_port}, published by the engine on 127.0.0.1:{host_port}" in said
    [row] = rows(run)
    assert (row["status"], row["hostIp"], row["localPort"], row["id"]) == ("published", "127.0.0.1", host_port, None)
    assert (row["url"], row["autoForwarded"]) == (f"http://localhost:{host_port}", False)
    assert fetch(row["url"]) == "hello\n"
    assert is_refused("127.0.0.1", container_port)
    eventually(lambda: registry(home)["entries"] == [], what="no entries in the registry")
    wait_steps(home, container_port, ["ignored"])
    listed = run("autoforward", "list", check=0).stdout
    assert "published" in listed
    assert f"localhost:{host_port}" in listed


def test_server_on_loopback_of_a_published_port_is_forwarded(container: ContainerFactory, run: Runner) -> None:
    container_port, host_port = free_port(), free_port()
    app = container(ports={f"{container_port}/tcp": ("127.0.0.1", host_port)})
    app.start_server(bind="127.0.0.1", port=container_port)
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, container_port, status="active")
    assert row["localPort"] == container_port
    assert fetch(row["url"]) == "hello\n"


def test_published_under_its_own_number_and_on_loopback(container: ContainerFactory, run: Runner) -> None:
    """`-p 3000:3000` and a server on 127.0.0.1: the published number leads nowhere, another one does."""
    port = free_port()
    app = container(ports={f"{port}/tcp": ("127.0.0.1", port)})
    server = app.start_server(bind="127.0.0.1", port=port)
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, port, status="active")
    assert row["localPort"] != port
    assert row["remapped"]
    assert f"host port {port} is in use" in row["reason"]
    assert fetch(row["url"]) == "hello\n"
    # The same server on all addresses can be reached where it is published: the forward goes.
    server.stop()
    app.start_server(bind="0.0.0.0", port=port, text="published")
    assert row_of(run, port, status="published")["localPort"] == port
    assert fetch(f"http://127.0.0.1:{port}/") == "published\n"
    assert is_refused("127.0.0.1", row["localPort"])


def test_container_on_the_hosts_network(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container(network="host")
    server = app.start_server(bind="127.0.0.1", port=free_port(), text="on the host")
    done = run("autoforward", "attach", app.name, check=0)
    assert "host's network" in done.stderr
    assert app.name in done.stderr
    assert fetch(f"http://127.0.0.1:{server.port}/") == "on the host\n"
    eventually(lambda: registry(home)["entries"] == [], what="no entries in the registry")
    assert {row["status"] for row in rows(run)} <= {"ignored"}
    assert "forwarded" not in names(logged(home))

    done = run("autoforward", "forward", "-d", app.name, f"{free_port()}:{server.port}")
    assert done.returncode == 1
    assert "on the host already" in done.stderr


def test_container_without_any_lane(container: ContainerFactory, run: Runner, home: Path) -> None:
    # The root's filesystem is read-only: no place for the agent either.
    app = container("nolane", read_only=True)
    server = app.start_server(port=free_port())
    done = run("autoforward", "attach", app.name)
    assert done.returncode == 1
    [error, *_] = [line for line in done.stderr.splitlines() if "error:" in line]
    assert error.startswith(f"autoforward: error: nothing can be forwarded from {app.name}: ")
    assert all(tool in done.stderr for tool in ("socat", "nc", "bash", "agent")), "what was tried, what would help"
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr
    row = row_of(run, server.port, status="failed")
    assert all(tool in row["reason"] for tool in ("socat", "nc", "bash", "agent")), row["reason"]
    assert (row["localPort"], row["id"]) == (None, None)
    wait_steps(home, server.port, ["failed"])
    assert is_refused("127.0.0.1", server.port)

    done = run("autoforward", "forward", app.name, f"{free_port()}:{server.port}")
    assert done.returncode == 1
    assert "nothing can be forwarded" in done.stderr


def test_lane_that_is_not_there(container: ContainerFactory, run: Runner) -> None:
    app = container("traditional")
    app.start_server(port=free_port())
    done = run("autoforward", "attach", app.name, "--lane", "socat")
    assert done.returncode == 1
    assert "socat" in done.stderr
    # Another demand, or none at all, can be met.
    for demand, lane in ((["--lane", "nc"], "nc"), ([], "agent")):
        run("autoforward", "attach", app.name, *demand, check=0)
        [row] = rows(run)
        assert (row["status"], row["lane"]) == ("active", lane)
        assert fetch(row["url"]) == "hello\n"

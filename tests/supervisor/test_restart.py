"""`autoforward restart`: another supervisor, the same sessions on the same host ports; and who should call it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import fetch
from tests.support.observing import free_port, row_of, rows

pytestmark = pytest.mark.docker


def test_restart_keeps_the_ports_in_another_process(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="plain")
    run("autoforward", "attach", app.name, check=0)
    row_of(run, server.port, status="active")
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        other = app.start_server(port=taken.getsockname()[1], text="remapped")
        assert row_of(run, other.port, status="active")["remapped"]
    before = {row["id"]: (row["port"], row["localPort"]) for row in rows(run)}
    first = supervisor_of(home)
    assert first is not None

    done = run("autoforward", "restart", check=0, real=True)

    assert "2 forward(s) on the same host ports" in done.stderr
    assert {row["id"]: (row["port"], row["localPort"]) for row in rows(run)} == before
    second = supervisor_of(home)
    assert second is not None
    assert second.pid != first.pid
    for container_port, text in ((server.port, "plain"), (other.port, "remapped")):
        [host_port] = [local for port, local in before.values() if port == container_port]
        assert fetch(f"http://127.0.0.1:{host_port}/") == f"{text}\n"


def test_a_port_that_is_lost_is_named_and_exit_1(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    server.stop()  # with nobody to listen, the next supervisor has nothing to bind the number for
    done = run("autoforward", "restart")
    assert (done.returncode, f"host port {host_port} " in done.stderr) == (1, True)


def test_restart_without_a_supervisor_says_so(run: Runner, home: Path) -> None:
    done = run("autoforward", "restart", check=0)
    assert "Nothing to restart" in done.stderr
    assert supervisor_of(home) is None


def test_supervisor_of_another_version_is_named(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    run("autoforward", "attach", app.name, check=0)
    info = home / "supervisor.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "version": "0.0.9"}))
    done = run("autoforward", "list", check=0)
    assert "version 0.0.9" in done.stderr
    assert "autoforward restart" in done.stderr
    run("autoforward", "restart", check=0, real=True)
    assert "version" not in run("autoforward", "list", check=0).stderr

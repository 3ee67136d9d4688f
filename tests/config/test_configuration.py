"""Settings and SPECs of files on a real engine: pins, what is left out, which layer wins."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import Container, fetch
from tests.support.observing import free_port, row_of, rows

pytestmark = pytest.mark.docker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".devcontainer").mkdir()
    return tmp_path


def write(folder: Path, **config: Any) -> None:
    (folder / ".devcontainer" / "devcontainer.json").write_text(json.dumps(config))


def dev_container(container: ContainerFactory, folder: Path) -> Container:
    return container(labels={"devcontainer.local_folder": str(folder)})


def test_a_container_port_has_the_local_port_that_it_was_given(
    container: ContainerFactory, run: Runner, folder: Path
) -> None:
    local, other, declared_local = free_port(), free_port(), free_port()
    settings = {"localPorts": {"3000": local, "3001": other, "3002": declared_local}}
    write(folder, forwardPorts=[3002], customizations={"autoforward": settings})
    one = dev_container(container, folder)
    one.start_server(port=3000, text="pinned")
    with socket.create_server(("127.0.0.1", other)):
        one.start_server(port=3001)
        done = run("autoforward", "attach", str(folder), check=0)
        row = row_of(run, 3000, status="active")
        assert (row["localPort"], row["remapped"]) == (local, False)
        assert fetch(f"http://localhost:{local}") == "pinned\n"
        assert row_of(run, 3002, status="waiting")["localPort"] == declared_local
        taken = row_of(run, 3001)
        assert (taken["status"], taken["localPort"]) == ("failed", None)
        assert f"host port {other} is in use" in taken["reason"]
        assert f"port 3001 of {one.name} is not forwarded: host port {other} is in use" in done.stderr


def test_a_pin_of_a_file_that_is_taken_is_exit_5_of_forward(
    container: ContainerFactory, run: Runner, folder: Path
) -> None:
    local = free_port()
    (folder / ".autoforward.toml").write_text(f"[localPorts]\n8080 = {local}\n")
    one = dev_container(container, folder)
    with socket.create_server(("127.0.0.1", local)):
        assert run("autoforward", "forward", "-d", one.name, "8080").returncode == 5
    assert run("autoforward", "forward", "-d", "--json", one.name, "8080", check=0).returncode == 0
    assert row_of(run, 8080)["localPort"] == local


def test_ranges_and_other_hosts_in_forwards_and_forward_ports(
    container: ContainerFactory, run: Runner, folder: Path
) -> None:
    low, pinned = free_port(), free_port()
    write(
        folder,
        forwardPorts=["4100-4101", f"{pinned}:127.0.0.1:4200"],
        customizations={"autoforward": {"forwards": [f"{low}:name.invalid:5432", "4300-4302"]}},
    )
    one = dev_container(container, folder)
    one.start_server(port=4200, text="through a pin with a host")
    run("autoforward", "attach", str(folder), check=0)
    found = {row["port"]: row for row in rows(run)}
    assert sorted(found) == [4100, 4101, 4200, 4300, 4301, 4302, 5432]
    assert fetch(f"http://localhost:{pinned}") == "through a pin with a host\n"
    assert (found[5432]["containerHost"], found[5432]["localPort"]) == ("name.invalid", low)
    assert {found[port]["status"] for port in (4100, 4101, 4300, 4301, 4302)} == {"waiting"}


def test_excluded_ports_and_those_that_include_brings_back(
    container: ContainerFactory, run: Runner, folder: Path
) -> None:
    (folder / ".autoforward.toml").write_text('exclude = ["4000-4010"]\ninclude = [4005]\nmaxPorts = 2\n')
    one = dev_container(container, folder)
    for port in (4001, 4005, 4020, 4021):
        one.start_server(port=port)
    run("autoforward", "attach", str(folder), check=0)
    found = {row["port"]: row for row in rows(run)}
    assert {port: row["status"] for port, row in found.items() if port} == {
        4001: "ignored",
        4005: "active",
        4020: "active",
    }
    assert found[4001]["reason"] == "excluded"


def test_user_file_project_file_variable_flag(
    container: ContainerFactory, run: Runner, folder: Path, home: Path
) -> None:
    """Each wins over the ones before it; told by what `attach` stores. A limit of the user's own file is not raised."""
    one = dev_container(container, folder)
    user = home / "user" / "autoforward" / "config.toml"

    def attached(*flags: str, **env: str) -> Any:
        run("autoforward", "attach", one.name, *flags, env=env, check=0)
        [session] = json.loads((home / "registry.json").read_text())["sessions"]
        return tuple(session["options"][name] for name in ("poll_interval_s", "lane", "max_ports"))

    assert attached() == (0.5, "auto", 128)
    user.parent.mkdir(parents=True)
    user.write_text('pollInterval = 1.1\nlane = "socat"\nmaxPorts = 11\n')
    assert attached() == (1.1, "socat", 11)
    (folder / ".autoforward.toml").write_text('pollInterval = 1.2\nlane = "nc"\nmaxPorts = 12\n')
    assert attached() == (1.2, "nc", 11)
    (folder / "named.toml").write_text("pollInterval = 1.3\n")
    named = ("--settings", str(folder / "named.toml"))
    assert attached(*named) == (1.3, "nc", 11)
    assert attached(*named, AUTOFORWARD_POLL_INTERVAL="1.4", AUTOFORWARD_MAX_PORTS="14") == (1.4, "nc", 14)
    (folder / ".autoforward.toml").write_text("maxPorts = 10\n")
    assert attached("--lane", "devtcp", AUTOFORWARD_LANE="auto", AUTOFORWARD_POLL_INTERVAL="1.4") == (1.4, "devtcp", 10)


@pytest.mark.parametrize("where", ["project", "named", "user"])
def test_a_bad_file_is_exit_2_with_its_line(
    container: ContainerFactory, run: Runner, folder: Path, home: Path, where: str
) -> None:
    one = dev_container(container, folder)
    path = {
        "project": folder / ".autoforward.toml",
        "named": folder / "named.toml",
        "user": home / "user" / "autoforward" / "config.toml",
    }[where]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('# one\nlane = "pigeon"\n')
    flags = ["--settings", str(path)] if where == "named" else []
    for command in (["attach", one.name], ["forward", one.name, "3000"]):
        done = run("autoforward", *command, *flags)
        assert done.returncode == 2
        assert done.stderr.startswith(f"autoforward: error: {path}:2: lane: 'pigeon' is not a lane")

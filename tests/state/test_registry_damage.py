"""The registry is damaged or from a newer version, while forwards are in use and after a kill. (Disks: test_disk.py.)"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, registry, row_of
from tests.support.supervisors import kill_9, the_supervisor
from tests.support.traffic import Traffic, ask_once

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "corrupt": lambda _data: bytes(range(256)) * 4,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _data: b"",
    "not a registry": lambda _data: b"[1, 2, 3]\n",
}


def held(home: Path) -> dict[int, int]:
    """Host ports by container port, as the registry has them; none while it cannot be read."""
    try:
        return {entry["container_port"]: entry["host_port"] for entry in registry(home)["entries"]}
    except (ValueError, TypeError, FileNotFoundError):  # the last: just set aside
        return {}


@pytest.mark.parametrize("damage", DAMAGE)
def test_registry_damaged_under_traffic_survives_a_killed_supervisor(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault, damage: str
) -> None:
    app = container()
    first, second = (app.start_server(port=free_port(), text=text) for text in ("first", "second"))
    run("autoforward", "attach", app.name, check=0)
    before = {server.port: row_of(run, server.port, status="active")["localPort"] for server in (first, second)}
    row = fault(f"registry is {damage}, forwards in use")
    with Traffic(before[first.port]) as traffic:
        path = home / "registry.json"
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
        damaged_s = time.time()
        eventually(lambda: held(home) == before, timeout_s=30, what="it is mended, and nobody has done anything")
        row.recovered(time.time() - damaged_s)
        third = app.start_server(port=free_port(), text="third")
        before[third.port] = row_of(run, third.port, status="active")["localPort"]
        assert ask_once(before[third.port]) == ("answered", "third")
    assert set(traffic.outcomes()) == {"answered"}
    [aside] = home.glob("registry.json.corrupt-*")
    row.note(f"set aside as {aside.name.partition('-')[0]}-…; rebuilt of what is live, within seconds")
    assert "set aside as" in (home / "supervisor.log").read_text()
    assert held(home) == before
    kill_9(the_supervisor(home))
    assert {port: row_of(run, port, status="active")["localPort"] for port in before} == before


def test_registry_damaged_while_no_supervisor_runs_is_set_aside(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault
) -> None:
    """What nobody knows any more cannot be restored; it is said, kept aside, and the next attach works."""
    app = container()
    server = app.start_server(port=free_port(), text="here")
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    kill_9(the_supervisor(home))
    (home / "registry.json").write_bytes(b"\x00garbage")
    row = fault("registry is corrupt, no supervisor")
    run("autoforward", "list", check=0)
    run("autoforward", "attach", app.name, check=0)
    assert row_of(run, server.port, status="active")["localPort"] == host_port
    assert ask_once(host_port) == ("answered", "here")
    assert len(list(home.glob("registry.json.corrupt-*"))) == 1
    row.note("set aside; attach again gives the same number")


def test_newer_registry_is_left_alone(container: ContainerFactory, run: Runner, home: Path, fault: NewFault) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="here")
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    row = fault("registry is from a newer version")
    newer = json.dumps({"version": 99, "entries": {}, "sessions": "another shape"})
    (home / "registry.json").write_text(newer)
    assert ask_once(host_port) == ("answered", "here"), "what is forwarded goes on"
    new = app.start_server(port=free_port(), text="new")
    assert ask_once(row_of(run, new.port, status="active")["localPort"]) == ("answered", "new"), "and what is new too"
    assert ask_once(host_port) == ("answered", "here")
    assert "version 99" in json.loads(run("autoforward", "status", "--json", check=0).stdout)["registry_problem"]
    kill_9(the_supervisor(home))
    done = run("autoforward", "attach", app.name, check=1)
    assert "hint: a newer autoforward wrote it" in done.stderr, done.stderr
    assert (home / "registry.json").read_text() == newer
    row.note(*[line for line in done.stderr.splitlines() if line.startswith("autoforward: ")][:2])

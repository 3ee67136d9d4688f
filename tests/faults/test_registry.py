"""The registry is damaged, from a newer version, or cannot be written, while forwards are in use and after a kill."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, end_everything_of
from tests.containers import eventually
from tests.docker.observing import free_port, registry, row_of
from tests.faults.report import Fault
from tests.faults.supervisors import kill_9, the_supervisor
from tests.faults.traffic import Traffic, ask_once

NewFault = Callable[[str], Fault]

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "corrupt": lambda _data: bytes(range(256)) * 4,
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _data: b"",
    "not a registry": lambda _data: b"[1, 2, 3]\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_under_traffic_and_then_the_supervisor_is_killed(
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
        third = app.start_server(port=free_port(), text="third")
        damaged_s = time.time()
        before[third.port] = row_of(run, third.port, status="active")["localPort"]
        row.recovered(time.time() - damaged_s)
        assert ask_once(before[third.port]) == ("answered", "third")
    assert set(traffic.outcomes()) == {"answered"}
    [aside] = home.glob("registry.json.corrupt-*")
    row.note(f"set aside as {aside.name.partition('-')[0]}-…; rebuilt of what is live")
    assert {entry["container_port"]: entry["host_port"] for entry in registry(home)["entries"]} == before
    kill_9(the_supervisor(home))
    assert {port: row_of(run, port, status="active")["localPort"] for port in before} == before


def test_damaged_while_no_supervisor_runs(
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
    kill_9(the_supervisor(home))
    done = run("autoforward", "attach", app.name, check=1)
    assert "hint: a newer autoforward wrote it" in done.stderr, done.stderr
    assert (home / "registry.json").read_text() == newer
    row.note(*[line for line in done.stderr.splitlines() if line.startswith("autoforward: ")][:2])


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The home on a file system of its own, of 2 MiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs", str(home)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        yield home
    finally:
        end_everything_of(home)
        subprocess.run(["mount", "-o", "remount,rw", str(home)], capture_output=True, check=False)
        subprocess.run(["umount", "--lazy", str(home)], check=True)


def fill(home: Path) -> None:
    with (home / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def make_room(home: Path) -> None:
    (home / "filler").unlink()


@pytest.mark.timeout(180)
def test_disk_is_full_under_traffic(
    container: ContainerFactory, run: Runner, small_disk: Path, fault: NewFault
) -> None:
    app = container()
    first = app.start_server(port=free_port(), text="first")
    run("autoforward", "attach", app.name, check=0)
    before = {first.port: row_of(run, first.port, status="active")["localPort"]}
    row = fault("disk is full")
    with Traffic(before[first.port]) as traffic:
        fill(small_disk)
        second = app.start_server(port=free_port(), text="second")
        before[second.port] = row_of(run, second.port, status="active")["localPort"]
        assert ask_once(before[second.port]) == ("answered", "second"), "what is new is forwarded too"
        app.restart()
        app.start_server(port=first.port, text="first")
        app.start_server(port=second.port, text="second")
        eventually(lambda: ask_once(before[second.port]) == ("answered", "second"), timeout_s=30)
        make_room(small_disk)
        third = app.start_server(port=free_port(), text="third")
        before[third.port] = row_of(run, third.port, status="active")["localPort"]
    assert set(traffic.outcomes()) <= {"answered", "reset"}, "cut by the restart, if at all"
    row.note("forwards go on, new ones too")

    def stored() -> bool:
        rows = {entry["container_port"]: entry["host_port"] for entry in registry(small_disk)["entries"]}
        return rows == before

    eventually(stored, timeout_s=60, what="what could not be written is written once there is room")
    kill_9(the_supervisor(small_disk))
    assert {port: row_of(run, port, status="active")["localPort"] for port in before} == before
    row.note("written once there is room")


@pytest.mark.timeout(180)
def test_supervisor_is_killed_while_the_disk_is_full(
    container: ContainerFactory, run: Runner, small_disk: Path, fault: NewFault
) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="here")
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    fill(small_disk)
    kill_9(the_supervisor(small_disk))
    row = fault("disk is full, supervisor is killed")
    asked_s = time.time()
    assert row_of(run, server.port, status="active")["localPort"] == host_port
    row.recovered(time.time() - asked_s)
    assert ask_once(host_port) == ("answered", "here")
    row.note("the next command restores")

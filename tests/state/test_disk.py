"""The disk of the state folder is full or read-only: forwards go on, people are told, and nothing is lost in the end."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ContainerFactory, Runner, end_everything_of, supervisor_of
from tests.support.containers import eventually, is_refused
from tests.support.fault_report import Fault
from tests.support.observing import Command, free_port, logged, registry, row_of, rows
from tests.support.supervisors import kill_9, the_supervisor
from tests.support.traffic import Traffic, ask_once

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]


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


@contextmanager
def full(home: Path) -> Iterator[None]:
    fill(home)
    yield
    make_room(home)


@contextmanager
def read_only(home: Path) -> Iterator[None]:
    """As after an error of the file system: by another mount, for what is open for writing keeps this one from changing."""
    subprocess.run(["mount", "--bind", str(home), str(home)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(home)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(home)], check=True)


TROUBLES: dict[str, Callable[[Path], AbstractContextManager[None]]] = {"full": full, "read-only": read_only}


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


def restored(run: Runner) -> dict[int, int]:
    """Host ports by container port of what is forwarded now."""
    return {row["port"]: row["localPort"] for row in rows(run) if row["status"] == "active"}


def sessions_of(home: Path) -> set[str]:
    return {session["container_name"] for session in registry(home)["sessions"]}


def bound(home: Path) -> dict[int, int]:
    return {row["container_port"]: row["host_port"] for row in registry(home)["entries"] if row["state"] == "bound"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_command_while_nothing_can_be_written(
    container: ContainerFactory, run: Runner, small_disk: Path, fault: NewFault, trouble: str
) -> None:
    """Each does what it is asked to, and says that it is not written; a supervisor that is killed later knows all of it."""
    ended, named, new = (container() for _ in range(3))
    one, kept, dropped, other = (
        app.start_server(port=free_port(), text=text)
        for app, text in ((ended, "one"), (named, "kept"), (named, "dropped"), (new, "other"))
    )
    run("autoforward", "attach", ended.name, check=0)
    run("autoforward", "forward", "-d", named.name, str(kept.port), str(dropped.port), check=0)
    before = {port: row_of(run, port, status="active") for port in (one.port, kept.port, dropped.port)}
    row = fault(f"disk is {trouble}, commands meanwhile")

    def told(*argv: str) -> None:
        done = run("autoforward", *argv, check=0)
        assert "autoforward: warning: cannot write the registry" in done.stderr, done.stderr
        assert "forwards go on" in done.stderr

    with TROUBLES[trouble](small_disk):
        told("attach", new.name)
        told("detach", ended.name)
        told("stop", before[dropped.port]["id"])
        told("forward", "-d", named.name, f"{free_port()}:db.invalid:1")
        told("status")
        with Command(small_disk, "autoforward", "forward", new.name, f"{free_port()}:db.invalid:2") as foreground:
            foreground.wait_line(lambda line: line.startswith("autoforward: warning: cannot write the registry"))
        state = json.loads(run("autoforward", "status", "--json", check=0).stdout)
        assert state["registry_problem"].startswith("cannot write the registry")
        assert "what has changed would be forgotten" in run("autoforward", "restart", check=1).stderr
        assert is_refused("127.0.0.1", before[one.port]["localPort"])
        assert is_refused("127.0.0.1", before[dropped.port]["localPort"])
        eventually(lambda: 2 not in restored(run), what="the foreground command's forward has ended")
        now = restored(run)
        assert now[kept.port] == before[kept.port]["localPort"]
        assert ask_once(now[kept.port]) == ("answered", "kept")
        assert ask_once(now[other.port]) == ("answered", "other")
        assert set(now) == {kept.port, other.port, 1}
        assert ended.name in sessions_of(small_disk), "the file is as it was"
    since_s = time.time()

    def written() -> bool:
        return sessions_of(small_disk) == {named.name, new.name} and bound(small_disk) == now

    eventually(written, timeout_s=30, what="what could not be written is written, and nobody has done anything")
    row.recovered(time.time() - since_s)
    row.since = "after there is room"
    eventually(lambda: ("unforwarded", one.port) in [(event["event"], event["port"]) for event in logged(small_disk)])
    seqs = [event["seq"] for event in logged(small_disk)]
    assert seqs == list(range(1, len(seqs) + 1)), "nor was any event lost"
    shown = run("autoforward", "status", "--json", check=0)
    assert (json.loads(shown.stdout)["registry_problem"], shown.stderr) == (None, "")
    kill_9(the_supervisor(small_disk))
    assert restored(run) == now
    row.note("each does it and warns; written by itself, nothing lost")


def test_supervisor_that_is_not_needed_stays_until_its_end_is_written(
    container: ContainerFactory, run: Runner, small_disk: Path, fault: NewFault
) -> None:
    """Else a session that was detached would come back with the next command."""
    app = container()
    run("autoforward", "attach", app.name, env={"AUTOFORWARD_IDLE_EXIT_S": "0.5"}, check=0)
    supervisor = the_supervisor(small_disk)
    row = fault("disk is full, the last session is detached")
    with full(small_disk):
        run("autoforward", "detach", app.name, check=0)
        threading.Event().wait(2)
        assert supervisor.status() != psutil.STATUS_ZOMBIE
    eventually(lambda: supervisor_of(small_disk) is None, timeout_s=30)
    assert registry(small_disk)["sessions"] == []
    row.note("the supervisor ends once that is written")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_commands_without_a_supervisor_say_what_is_wrong(
    container: ContainerFactory, run: Runner, small_disk: Path, trouble: str
) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="here")
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    kill_9(the_supervisor(small_disk))
    with TROUBLES[trouble](small_disk):
        commands: list[tuple[str, ...]] = [("detach", app.name)]
        if trouble == "read-only":  # on a full disk a supervisor starts
            commands += [("attach", app.name), ("list",)]
        for argv in commands:
            done = run("autoforward", *argv, check=1)
            [error, *_] = done.stderr.splitlines()
            assert error.startswith("autoforward: error: ")
            assert str(small_disk) in error
            assert ("No space left" if trouble == "full" else "Read-only file system") in error
    assert restored(run) == {server.port: host_port}, "nothing was lost"

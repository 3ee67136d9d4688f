"""Containers that stop, are killed, restart and pause under traffic. (Renamed, rebuilt: test_session_life.py.)"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.nightly import times
from tests.support.container_log import listening_since
from tests.support.containers import HELPER_DIR, Container, eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, logged, names, row_of, wait_event
from tests.support.traffic import Traffic, ask_once

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]
ROUNDS = times(2, 5)


def stop_and_start(app: Container) -> None:
    app.stop()
    app.start()


def kill_and_start(app: Container) -> None:
    app.kill()
    eventually(lambda: app.raw.reload() or app.raw.status == "exited", what="the container has ended")
    app.start()


@pytest.mark.parametrize(
    ("what", "happen", "goal_s"),
    [
        ("container restarts", Container.restart, 1.0),
        ("container stops and starts", stop_and_start, None),
        ("container is killed and starts", kill_and_start, None),
    ],
    ids=["restart", "stop", "kill"],
)
def test_container_goes_and_comes_under_traffic(
    container: ContainerFactory,
    run: Runner,
    home: Path,
    fault: NewFault,
    what: str,
    happen: Callable[[Container], None],
    goal_s: float | None,
) -> None:
    port = free_port()
    app = container(command=["python3", f"{HELPER_DIR}/server.py", "http", "--port", str(port)])
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, status="active")
    row = fault(what)
    row.goal_s, row.since = goal_s, "after the server listens again"
    for _ in range(ROUNDS):
        since = logged(home)[-1]["seq"]
        with Traffic(before["localPort"]) as traffic:
            traffic.wait_answer(after_s=0)
            starts, broke_s = len(listening_since(app)), time.time()
            happen(app)
            listens_s = eventually(lambda seen=starts: listening_since(app)[seen:], timeout_s=30)[0]
            row.recovered(traffic.wait_answer(after_s=listens_s).ended_s - listens_s)
            eventually(lambda: row_of(run, port, status="active"))
        outcomes = traffic.outcomes(since_s=broke_s)
        # What was being answered when the server went was cut by that; nobody is refused, hangs, or gets half a page.
        assert set(outcomes) <= {"answered", "reset"}, outcomes
        row.note_events(logged(home, port, since=since))
        row.note_traffic(outcomes)
        assert "unforwarded" not in names(logged(home, port, since=since))
    after = row_of(run, port, status="active")
    assert (after["localPort"], after["id"]) == (before["localPort"], before["id"])
    assert row.median_s < 10


def test_container_pauses_under_traffic(container: ContainerFactory, run: Runner, home: Path, fault: NewFault) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, server.port, status="active")
    row = fault("container is paused for a moment")
    row.since = "after unpause"
    with Traffic(before["localPort"]) as traffic:
        traffic.wait_answer(after_s=0)
        for _ in range(ROUNDS):
            since = logged(home)[-1]["seq"]
            paused_s = time.time()
            app.raw.pause()
            wait_event(home, "reconnecting", server.port, since=since)
            app.raw.unpause()
            resumed_s = time.time()
            row.recovered(traffic.wait_answer(after_s=resumed_s).ended_s - resumed_s)
            wait_event(home, "reconnected", server.port, since=since)
            row.note_events(logged(home, server.port, since=since))
            assert "hung" not in traffic.outcomes(since_s=paused_s)
    outcomes = traffic.outcomes()
    assert set(outcomes) == {"answered"}, "a pause cuts nothing and loses nothing"
    row.note_traffic(outcomes)
    assert row_of(run, server.port, status="active")["localPort"] == before["localPort"]


@pytest.mark.timeout(180)
def test_connections_made_while_it_is_away_wait_for_ten_seconds_and_are_reset(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    app.stop()
    wait_event(home, "reconnecting", server.port)
    began_s = time.monotonic()
    results: list[tuple[str, float]] = []

    def wait_for_it() -> None:
        outcome, _ = ask_once(host_port, timeout_s=60)
        results.append((outcome, time.monotonic() - began_s))

    clients = [threading.Thread(target=wait_for_it) for _ in range(10)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(70)
    assert [outcome for outcome, _ in results] == ["reset"] * 10
    assert all(seconds > 9 for _, seconds in results), results
    row = fault("container stays away, connections meanwhile")
    row.note_events(logged(home, server.port)[1:])
    row.note(f"held for {results[0][1]:.0f} s, then reset")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", host_port))
    app.start()
    app.start_server(port=server.port, text="back")
    back_s = time.time()
    assert eventually(lambda: ask_once(host_port) == ("answered", "back"), timeout_s=30)
    row.recovered(time.time() - back_s)

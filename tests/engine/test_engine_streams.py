"""The engine is there, but not the way to it: streams cut or stalled, events lost, a socket that goes and comes back."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoforward.engine.pool import ENGINE_THREADS
from tests.conftest import ContainerFactory, Runner
from tests.support.containers import Container, eventually
from tests.support.engine_proxy import EngineProxy, is_reachable
from tests.support.fault_report import Fault
from tests.support.observing import free_port, logged, row_of, rows, status_json, wait_event
from tests.support.traffic import Traffic

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]


@pytest.fixture
def proxy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineProxy]:
    if not is_reachable():
        pytest.skip("the engine is not on the default socket")
    proxy = EngineProxy(home / "engine")
    yield proxy
    proxy.close()


def test_every_stream_of_the_engine_is_cut_under_traffic(
    container: ContainerFactory, run: Runner, home: Path, proxy: EngineProxy, fault: NewFault
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--docker-host", proxy.host, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    row = fault("every stream of the engine is cut")
    row.since = "after the cut"
    for _ in range(3):
        with Traffic(host_port) as traffic:
            traffic.wait_answer(after_s=0)
            cut_s = time.time()
            assert proxy.cut() >= 2, "the agent's stream and the events"
            row.recovered(traffic.wait_answer(after_s=cut_s).ended_s - cut_s)
        outcomes = traffic.outcomes(since_s=cut_s)
        assert set(outcomes) <= {"answered", "reset"}, outcomes
        row.note_traffic(outcomes)
    row.note_events(logged(home, server.port)[1:])
    eventually(lambda: len(app.processes(of_tests=False)) == 1, timeout_s=20, what="the cut ones' agents have ended")
    assert row_of(run, server.port, status="active")["localPort"] == host_port


def test_socket_of_the_engine_goes_and_comes_back(
    container: ContainerFactory, run: Runner, home: Path, proxy: EngineProxy, fault: NewFault
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--docker-host", proxy.host, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    row = fault("the engine's socket goes and comes back")
    row.since = "after it is back"
    with Traffic(host_port) as traffic:
        traffic.wait_answer(after_s=0)
        gone_s = time.time()
        proxy.vanish()
        traffic.wait_answer(after_s=gone_s + 0.5)
        assert set(traffic.outcomes()) == {"answered"}, "what is connected goes on"
        cut_s = time.time()
        proxy.cut()
        wait_event(home, "reconnecting", server.port)
        assert "does not answer" in row_of(run, server.port, status="reconnecting")["reason"]
        proxy.appear()
        back_s = time.time()
        row.recovered(traffic.wait_answer(after_s=back_s).ended_s - back_s)
    outcomes = traffic.outcomes(since_s=cut_s)
    assert set(outcomes) <= {"answered", "reset"}, outcomes
    row.note_traffic(outcomes)
    row.note_events(logged(home, server.port)[1:])
    assert row.median_s < 10


def test_changes_in_lost_events_are_seen_all_the_same(
    container: ContainerFactory, run: Runner, home: Path, proxy: EngineProxy, fault: NewFault
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--docker-host", proxy.host, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    row = fault("events of the engine are lost while its container starts")
    row.since = "after they can be had again"
    app.stop()
    wait_event(home, "reconnecting", server.port)
    proxy.refuse = lambda line: "/events" in line
    assert proxy.cut(lambda line: "/events" in line) == 1
    app.start()
    app.start_server(port=server.port, text="again")
    assert row_of(run, server.port)["status"] == "reconnecting", "nobody has told it"
    proxy.refuse = lambda _line: False
    back_s = time.time()
    row_of(run, server.port, status="active")
    row.recovered(time.time() - back_s)
    with Traffic(host_port) as traffic:
        assert traffic.wait_answer(after_s=0).said == "again"
    row.note_events(logged(home, server.port)[1:])


@pytest.mark.timeout(120)
def test_a_service_that_started_while_nobody_told_of_it(
    container: ContainerFactory, run: Runner, proxy: EngineProxy, fault: NewFault
) -> None:
    project = f"shop{uuid.uuid4().hex[:8]}"

    def service(name: str) -> Container:
        compose = {"project": project, "service": name, "container-number": "1"}
        return container(labels={f"com.docker.compose.{key}": value for key, value in compose.items()})

    def watched() -> set[str]:
        sessions = status_json(run)["sessions"]
        return {one["container_name"] for one in sessions}

    app = service("app")
    left_alone = service("left-alone")
    run("autoforward", "attach", f"{project}/*", "--docker-host", proxy.host, check=0)
    run("autoforward", "detach", left_alone.name, check=0)
    assert watched() == {app.name}
    row = fault("a service of the project starts while events of the engine are lost")
    row.since = "after they can be had again"
    proxy.refuse = lambda line: "/events" in line
    assert proxy.cut(lambda line: "/events" in line) == 1
    late = service("late")
    assert watched() == {app.name}, "nobody has told it"
    proxy.refuse = lambda _line: False
    back_s = time.time()
    eventually(lambda: late.name in watched(), timeout_s=60)
    row.recovered(time.time() - back_s)
    assert watched() == {app.name, late.name}, "what somebody detached is left alone"


@pytest.mark.timeout(240)
def test_an_engine_that_hangs_is_waited_for_and_nobody_else_notices(
    container: ContainerFactory, run: Runner, home: Path, proxy: EngineProxy, fault: NewFault
) -> None:
    """More sessions of it than an engine has threads, and one of another engine that must not wait behind them."""
    apps, other = [container() for _ in range(ENGINE_THREADS + 1)], container()
    servers = [app.start_server(port=free_port()) for app in apps]
    theirs = other.start_server(port=free_port())
    for app in apps:
        run("autoforward", "attach", app.name, "--docker-host", proxy.host, check=0)
    run("autoforward", "attach", other.name, check=0)
    host_port = row_of(run, servers[0].port, status="active")["localPort"]
    their_port = row_of(run, theirs.port, status="active")["localPort"]
    row = fault("the engine hangs, with streams open and requests without an answer")
    row.since = "after it goes on"
    with Traffic(host_port, interval_s=0.2) as traffic, Traffic(their_port) as elsewhere:
        traffic.wait_answer(after_s=0)
        proxy.stall()
        stalled_s = time.time()
        for server in servers:  # all of them wait for it now
            wait_event(home, "reconnecting", server.port, timeout_s=60)
        said = row_of(run, servers[0].port)
        assert (said["status"], said["reason"]) == ("reconnecting", f"the engine at {proxy.host} takes long to answer")
        states = {one["container_name"]: one["state"] for one in status(run)["sessions"]}
        assert states == {other.name: "watching", **{app.name: "reconnecting" for app in apps}}
        run("autoforward", "detach", apps[-1].name, check=0)
        assert [one["port"] for one in rows(run) if one["containerName"] == apps[-1].name] == []
        # The other engine's session is not merely up: it begins anew, which takes calls of its engine.
        run("autoforward", "detach", other.name, check=0)
        run("autoforward", "attach", other.name, check=0)
        assert row_of(run, theirs.port, status="active")["localPort"] == their_port
        proxy.resume()
        resumed_s = time.time()
        row.recovered(traffic.wait_answer(after_s=resumed_s).ended_s - resumed_s)
        for server in servers[:-1]:
            row_of(run, server.port, status="active", timeout_s=60)
    outcomes = traffic.outcomes(since_s=stalled_s)
    assert set(outcomes) <= {"answered", "reset"}, outcomes
    assert set(elsewhere.outcomes()) <= {"answered", "reset", "refused"}, "reset and refused while it was detached"
    row.note_traffic(outcomes)
    row.note_events(logged(home, servers[0].port)[1:])
    run("autoforward", "detach", "--all", check=0)
    for app in apps:
        eventually(lambda app=app: app.processes(of_tests=False) == [], timeout_s=30, what="nothing of ours is left")


def status(run: Runner) -> dict[str, Any]:
    """What `autoforward status --json` says."""
    said: dict[str, Any] = status_json(run)
    return said

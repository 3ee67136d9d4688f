"""An engine that is stopped, killed and started again under traffic; a second one, of the test's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import docker
import pytest

from tests.conftest import Runner
from tests.nightly import times
from tests.support.container_log import listening_since
from tests.support.containers import HELPER_DIR, Container, eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, logged, names, row_of, wait_event
from tests.support.second_engine import SecondEngine
from tests.support.traffic import Traffic

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]
ROUNDS = times(1, 3)


@pytest.fixture(params=[False, True], ids=["containers-end-with-it", "live-restore"])
def second(
    request: pytest.FixtureRequest,
    engine: docker.DockerClient,
    images: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SecondEngine]:
    if (reason := SecondEngine.unavailable_reason()) is not None:
        pytest.skip(reason)
    second = SecondEngine(live_restore=request.param)
    try:
        second.start()
        second.load(images["full"])
        monkeypatch.setenv("DOCKER_HOST", second.host)
        yield second
    finally:
        monkeypatch.undo()
        second.close()


@pytest.mark.timeout(300)
def test_engine_ends_and_starts_under_traffic(
    second: SecondEngine, images: Mapping[str, str], run: Runner, home: Path, fault: NewFault
) -> None:
    port = free_port()
    app = second.run(
        images["full"],
        ["python3", f"{HELPER_DIR}/server.py", "http", "--port", str(port)],
        restart_policy={"Name": "always"},
        stop_signal="SIGKILL",  # pid 1 ignores TERM, and the engine would wait for ten seconds
    )
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, status="active")
    kept = ", containers live on" if second.live_restore else ""
    for what, end in (("is stopped", second.stop), ("is killed (-9)", second.kill)):
        row = fault(f"engine {what} and starts{kept}")
        row.goal_s, row.since = 2.0, "after it answers"
        for _ in range(ROUNDS):
            since = logged(home)[-1]["seq"]
            with Traffic(before["localPort"]) as traffic:
                traffic.wait_answer(after_s=0)
                starts = len(listening_since(app))
                broke_s = time.time()
                end()
                wait_event(home, "reconnecting", port, since=since)
                away = row_of(run, port, status="reconnecting")
                assert away["localPort"] == before["localPort"]
                assert away["reason"]
                ready_s = second.start()
                if not second.live_restore:
                    ready_s = max(ready_s, _listens(app, starts))
                row.recovered(traffic.wait_answer(after_s=ready_s).ended_s - ready_s)
                eventually(lambda: row_of(run, port, status="active"))
            outcomes = traffic.outcomes(since_s=broke_s)
            assert set(outcomes) <= {"answered", "reset"}, outcomes
            row.note_events(logged(home, port, since=since))
            row.note_traffic(outcomes)
            assert "unforwarded" not in names(logged(home, port, since=since))
        after = row_of(run, port, status="active")
        assert (after["localPort"], after["id"]) == (before["localPort"], before["id"])
        assert row.median_s < 15
    run("autoforward", "detach", app.name, check=0)
    eventually(lambda: app.processes(of_tests=False) == [], timeout_s=20, what="nothing of ours is left")


def _listens(app: Container, starts: int) -> float:
    return eventually(lambda: listening_since(app)[starts:], timeout_s=30, what="the server listens again")[0]

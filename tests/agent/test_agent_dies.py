"""An agent that something in the container kills as soon as it works, time after time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_agent_in_containers import agents
from tests.conftest import ContainerFactory, Runner
from tests.support.containers import eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, logged, names, row_of, status_json
from tests.support.traffic import ask_once

pytestmark = pytest.mark.faults

GIVES_WAY_S = 60.0


@pytest.mark.timeout(180)
def test_an_agent_that_dies_each_time_gives_way(
    container: ContainerFactory, run: Runner, home: Path, fault: Callable[[str], Fault]
) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="all the same")
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, server.port, status="active")
    row = fault("the agent dies, time after time")
    row.since = "from its first end to the next lane"
    began_s, killed = time.monotonic(), 0
    while (lane := _lane(run))["name"] == "agent":
        assert time.monotonic() - began_s < GIVES_WAY_S, f"killed {killed} times, and still the agent"
        for pid in agents(app):
            app.exec(["sh", "-c", f"kill -9 {pid}"], user="root")
            killed += 1
        after = row_of(run, server.port, status="active")
        assert ask_once(after["localPort"])[0] in ("answered", "reset")
    row.recovered(time.monotonic() - began_s)
    assert lane["name"] == "socat"
    assert "not the agent, because it ended 3 times within 5 s of its start" in lane["note"]
    after = row_of(run, server.port, status="active")
    assert (after["localPort"], after["id"]) == (before["localPort"], before["id"])
    assert ask_once(after["localPort"]) == ("answered", "all the same")
    assert "unforwarded" not in names(logged(home, server.port))
    row.note(f"killed {killed} times; {lane['note']}")


def _lane(run: Runner) -> dict[str, Any]:
    """The lane of the one session, as soon as it is watched."""

    def watched() -> dict[str, Any] | None:
        [session] = status_json(run)["sessions"]
        return session["lane"] if session["state"] == "watching" else None

    lane = eventually(watched, timeout_s=GIVES_WAY_S, what="its session is watched")
    assert lane is not None
    return lane

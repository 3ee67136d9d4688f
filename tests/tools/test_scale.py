"""The bench's engine that is not there: a real supervisor attaches to its containers, and its successor has them all again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoforward.lanes.agent_install import NoAgentError, agent_binary
from bench.fake_engine import container_id
from bench.scale import Home, fakes, measure
from tests.support.containers import event_lines

pytestmark = pytest.mark.local

COUNT = 6


def test_supervisor_of_many_containers_is_killed_and_has_them_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        agent_binary("amd64")
    except NoAgentError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("AUTOFORWARD_HOME", str(home))
    with fakes(COUNT, engines=2, delay_ms=1.0) as places:
        figures = measure(Home(home), places, idle_s=0.1)
    assert {"attach all, s", "after kill -9, all back, s", "detach all, s"} <= set(figures)
    events = list(event_lines((home / "events.jsonl").read_text()))
    for number in range(COUNT):
        told = [event for event in events if event["containerId"] == container_id(number)]
        ups = [event["localPort"] for event in told if event["event"] == "forwarded"]
        assert len(ups) == 2, told
        assert ups[0] == ups[1], "the same host port after the kill"
        assert "unforwarded" in [event["event"] for event in told][-2:]
    leases = json.loads((home / "registry.json").read_text())
    assert leases["sessions"] == []
    assert {lease["state"] for lease in leases["entries"]} == {"reserved"}

"""What a supervisor that was killed left without an end, as the log of events tells it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.state.event_lines import read_events
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StatePaths
from autoforward.state.missing_ends import REASON, left_open, log_missing_ends

pytestmark = pytest.mark.unit

SESSION = PortEvent(event="attached", container_id="c0ffee", container_name="web", workspace_folder="/home/me/web")
PORT = replace(
    SESSION,
    event="forwarded",
    status="active",
    container_port=3000,
    host_port=3001,
    host_ip="127.0.0.1",
    id="fwd-1a2b3c4d",
    transport="tcp",
    container_host="127.0.0.1",
    auto_forwarded=True,
    process="node server.js --token=***",
    label="web",
    remapped=True,
    reason="host port 3000 is in use",
)
END = replace(PORT, event="unforwarded", status=None, auto_forwarded=False, reason="the server stopped")
DETACHED = replace(SESSION, event="detached", reason="detached")
FAILED = replace(PORT, event="failed", status="failed", id=None, host_port=None, host_ip=None, auto_forwarded=False)


def ends(*events: PortEvent) -> list[tuple[str, str | None, int | None]]:
    found = left_open(event.to_json() for event in events)
    assert {event.reason for event in found} <= {REASON}
    return [(event.event, event.container_id, event.container_port) for event in found]


def test_an_event_survives_its_object() -> None:
    event = replace(PORT, seq=7, time="2026-01-01T00:00:00.123Z")
    assert PortEvent.from_json(event.to_json()) == event
    assert PortEvent.from_json({"event": "attached", "unknown": 1}) == PortEvent(event="attached")


def test_a_forward_and_its_session_end_as_they_were() -> None:
    forward, session = left_open(event.to_json() for event in (SESSION, PORT))
    assert forward == replace(END, reason=REASON)
    assert session == replace(DETACHED, reason=REASON)


moved = {"container_id": "cafe"}

CASES: dict[str, tuple[list[PortEvent], list[tuple[str, str, int | None]]]] = {
    "all told": ([SESSION, PORT, END, DETACHED], []),
    "a session alone": ([SESSION], [("detached", "c0ffee", None)]),
    "a port that ended": ([SESSION, PORT, END], [("detached", "c0ffee", None)]),
    "waiting is up": ([replace(PORT, event="waiting", status="waiting")], [("unforwarded", "c0ffee", 3000)]),
    "a port that failed, and then had a number": (
        [FAILED, replace(PORT, container_host="::1"), replace(PORT, event="updated")],
        [("unforwarded", "c0ffee", 3000)],
    ),
    "one that failed and went": ([FAILED, replace(FAILED, event="unforwarded", status=None)], []),
    "a row that is not forwarded": (
        [replace(FAILED, event="ignored", status="ignored", container_host=None)],
        [("unforwarded", "c0ffee", 3000)],
    ),
    "the rest beyond the limit": (
        [SESSION, replace(SESSION, event="ignored", status="ignored")],
        [("unforwarded", "c0ffee", None), ("detached", "c0ffee", None)],
    ),
    "the same number of another host": (
        [PORT, replace(PORT, id="fwd-2", container_host="db"), replace(END, id="fwd-2", container_host="db")],
        [("unforwarded", "c0ffee", 3000)],
    ),
    "files that are not valid": ([replace(SESSION, event="updated", reason="not JSON")], []),
    "a container made anew": (
        [SESSION, PORT, replace(PORT, event="reconnected", **moved)],
        [("unforwarded", "cafe", 3000), ("detached", "cafe", None)],
    ),
    "a container made anew, told to its end": (
        [SESSION, PORT, replace(PORT, event="reconnected", **moved), replace(END, **moved), replace(DETACHED, **moved)],
        [],
    ),
    "an end whose beginning is not in the log any more": ([END, DETACHED], []),
}


@pytest.mark.parametrize("case", CASES)
def test_forwards_and_sessions_without_an_end_are_open(case: str) -> None:
    events, expected = CASES[case]
    assert ends(*events) == expected


EVENTS = st.builds(
    lambda event, changes: replace(event, **changes),
    st.sampled_from([SESSION, PORT, END, DETACHED, FAILED, replace(PORT, event="waiting", status="waiting")]),
    st.fixed_dictionaries(
        {},
        optional={
            "container_id": st.sampled_from(["c0ffee", "cafe"]),
            "container_port": st.sampled_from([3000, 4000]),
            "container_host": st.sampled_from([None, "::1", "db"]),
        },
    ),
)


@given(st.lists(EVENTS, max_size=12))
def test_told_ends_leave_nothing_open(events: list[PortEvent]) -> None:
    found = left_open(event.to_json() for event in events)
    assert left_open(event.to_json() for event in [*events, *found]) == []


ANYTHING = st.none() | st.text(max_size=3) | st.integers() | st.just([])


@given(st.dictionaries(st.sampled_from([*PORT.to_json(), "x"]), ANYTHING))
def test_lines_that_somebody_spoilt_do_no_harm(values: dict[str, Any]) -> None:
    for whole in (values, PORT.to_json() | values):
        for event in left_open([whole]):
            event.to_json()


def test_missing_ends_are_numbered_on_and_told_once(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "state")
    paths.ensure()
    log = EventLog(paths, print)
    for event in (SESSION, PORT):
        log.append(event)
    assert log_missing_ends(paths, EventLog(paths, print)) == 2
    assert log_missing_ends(paths, EventLog(paths, print)) == 0
    assert [(values["seq"], values["event"]) for values in read_events(paths)] == [
        (1, "attached"),
        (2, "forwarded"),
        (3, "unforwarded"),
        (4, "detached"),
    ]

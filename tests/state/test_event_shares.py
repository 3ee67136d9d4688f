"""What of a full log of events goes on: the newest of each container, as much of one as of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoforward.state.event_lines import read_events
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.event_shares import kept, share_of
from autoforward.state.folder import StatePaths

pytestmark = pytest.mark.unit

LOUD, QUIET, OTHER = "10d", "0111e7", "07e3"


@pytest.mark.parametrize(
    ("sizes", "total", "share"),
    [
        ({}, 100, 100),
        ({b"a": 60}, 100, 100),
        ({b"a": 600}, 100, 100),
        ({b"a": 600, b"b": 10}, 100, 90),
        ({b"a": 600, b"b": 500}, 100, 50),
        ({b"a": 600, b"b": 500, b"c": 20}, 100, 40),
        ({b"a": 30, b"b": 30, b"c": 30}, 100, 100),
    ],
)
def test_share_that_one_container_leaves_goes_to_the_others(sizes: dict[bytes, int], total: int, share: int) -> None:
    assert share_of(sizes, total) == share
    assert sum(min(size, share) for size in sizes.values()) <= total


def line(seq: int, container: str) -> bytes:
    return json.dumps({"seq": seq, "containerId": container}, separators=(",", ":")).encode() + b"\n"


def test_the_newest_of_each_in_their_order_and_the_last_of_all() -> None:
    lines = [line(1000 + seq, QUIET if seq % 10 == 0 else LOUD) for seq in range(100)]
    size = len(lines[1])
    on = list(kept(lambda: lines, 30 * size))
    assert [one for one in on if QUIET.encode() in one] == lines[::10]
    loud = [one for one in on if LOUD.encode() in one]
    assert loud == [one for one in lines if LOUD.encode() in one][-len(loud) :]
    assert 18 <= len(loud) <= 20
    assert on == sorted(on)
    assert list(kept(lambda: lines, 1)) == lines[-1:], "or the numbers began again"


def test_lines_that_are_there_twice_go_on_once_and_torn_ones_never() -> None:
    lines = [line(1, LOUD), line(2, LOUD), b'{"seq":3,"contai\n', line(2, LOUD), line(4, LOUD), b'{"seq":5']
    assert list(kept(lambda: lines, 1000)) == [line(1, LOUD), line(2, LOUD), line(4, LOUD)]


def log_of(paths: StatePaths) -> EventLog:
    def fail(text: str) -> None:
        raise AssertionError(text)

    return EventLog(paths, fail, max_bytes=20_000)


def event(container: str, port: int) -> PortEvent:
    return PortEvent(event="updated", container_id=container, container_name="web", container_port=port, label="x")


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    made = StatePaths(tmp_path / "state")
    made.ensure()
    return made


def test_endless_events_of_one_container_leave_the_others_in_the_log(paths: StatePaths) -> None:
    """580 events a second of one session: everybody else's were gone after 25 s."""
    log = log_of(paths)
    for port in range(5):
        log.append(event(QUIET, port))
    for port in range(1000):
        log.append(event(LOUD, port % 7))
        if port % 400 == 0:
            log.append(event(OTHER, port))
    found = list(read_events(paths))
    assert [one["port"] for one in found if one["containerId"] == QUIET] == [0, 1, 2, 3, 4]
    assert [one["port"] for one in found if one["containerId"] == OTHER] == [0, 400, 800]
    numbers = [one["seq"] for one in found]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 1008 == log.last_seq
    loud = [one["seq"] for one in found if one["containerId"] == LOUD]
    assert len(loud) > 20
    assert [one["seq"] for one in read_events(paths, since=1000)] == list(range(1001, 1009))
    for path in (paths.events, paths.rotated_events):
        assert path.stat().st_size <= 20_000
        assert path.stat().st_mode & 0o777 == 0o600
    assert log_of(paths).last_seq == 1008


def test_a_rotation_that_was_interrupted_shows_nothing_twice(paths: StatePaths) -> None:
    log = log_of(paths)
    for port in range(200):
        log.append(event(LOUD, port))
    before = paths.events.read_bytes()
    paths.rotated_events.write_bytes(paths.rotated_events.read_bytes() + before)  # killed before the last step of it
    numbers = [one["seq"] for one in read_events(paths)]
    assert numbers == sorted(set(numbers))
    for port in range(200):
        log.append(event(LOUD, port))
    numbers = [one["seq"] for one in read_events(paths)]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 400


def test_older_log_is_dropped_where_there_is_no_room_for_both(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autoforward.state.event_log.kept", full)
    log = log_of(paths)
    for port in range(200):
        log.append(event(LOUD, port))
    numbers = [one["seq"] for one in read_events(paths)]
    assert numbers == list(range(numbers[0], 201))
    assert sorted(path.name for path in paths.home.iterdir()) == ["events.jsonl", "events.jsonl.1"]

"""PORT_EVENT lines against the contract and the shipped schema; the log on a real disk; masked command lines."""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.masking.command_line import MAX_COMMAND_LINE, mask_command_line
from autoforward.core.model import EventName, OnAutoForward, Status
from autoforward.state import event_log as events_module
from autoforward.state.event_lines import matches_target, read_events
from autoforward.state.event_log import EventLog, PortEvent, encode_line, list_row, url_of
from autoforward.state.folder import StatePaths

pytestmark = pytest.mark.unit

SCHEMA = json.loads(resources.files("autoforward").joinpath("port_event.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
EVENT = PortEvent(
    container_port=3000,
    protocol="http",
    label="web",
    on_auto_forward="notify",
    auto_forwarded=True,
    host_port=3001,
    host_ip="127.0.0.1",
    event="forwarded",
    seq=17,
    time="2026-01-01T00:00:00.123Z",
    id="fwd-1a2b3c4d",
    transport="tcp",
    container_id="c0ffee12",
    container_name="web-1",
    workspace_folder="/abs",
    container_host="127.0.0.1",
    process="node server.js",
    remapped=True,
    status="active",
    reason="host port 3000 is in use",
)
LINE = (
    'PORT_EVENT: {"port":3000,"protocol":"http","label":"web","onAutoForward":"notify","autoForwarded":true,'
    '"localPort":3001,"hostIp":"127.0.0.1","description":null,"openPreview":null,"requireLocalPort":null,'
    '"elevateIfNeeded":null,"event":"forwarded","seq":17,"time":"2026-01-01T00:00:00.123Z","id":"fwd-1a2b3c4d",'
    '"transport":"tcp","containerId":"c0ffee12","containerName":"web-1","workspaceFolder":"/abs","service":null,'
    '"containerHost":"127.0.0.1","process":"node server.js","url":"http://localhost:3001","remapped":true,'
    '"status":"active","reason":"host port 3000 is in use"}\n'
)
MOMENT = datetime(2026, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    result = StatePaths(tmp_path / "state")
    result.ensure()
    return result


def log_of(paths: StatePaths, **more: Any) -> EventLog:
    return EventLog(paths, pytest.fail, clock=lambda: MOMENT, **more)


def test_the_line_of_the_contract() -> None:
    assert encode_line(EVENT) == LINE
    VALIDATOR.validate(EVENT.to_json())


def test_a_replayed_line_and_one_of_a_session_fit_the_schema() -> None:
    assert encode_line(replace(EVENT, replay=True)).endswith('"replay":true}\n')
    VALIDATOR.validate(replace(EVENT, replay=True).to_json())
    session = PortEvent(event="attached", seq=1, time="2026-01-01T00:00:00.123Z", container_id="c")
    VALIDATOR.validate(session.to_json())
    assert list(session.to_json()) == list(EVENT.to_json())


def test_the_schema_is_closed_complete_and_knows_every_word() -> None:
    properties = SCHEMA["properties"]
    VALIDATOR.check_schema(SCHEMA)
    assert SCHEMA["additionalProperties"] is False
    assert SCHEMA["required"] == list(EVENT.to_json())
    assert set(properties) - set(SCHEMA["required"]) == {"replay"}
    assert properties["event"]["enum"] == list(get_args(EventName))
    assert properties["status"]["enum"] == [*get_args(Status), None]
    assert properties["onAutoForward"]["enum"] == [*get_args(OnAutoForward), None]


@pytest.mark.parametrize(
    "change", [{"port": 0}, {"port": "3000"}, {"event": "gone"}, {"more": 1}, {"time": "now"}, {"replay": False}]
)
def test_the_schema_says_no(change: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid({**EVENT.to_json(), **change})


@given(st.text(), st.text())
def test_no_text_can_leave_its_line_or_reach_the_terminal(label: str, process: str) -> None:
    line = encode_line(replace(EVENT, label=label, process=process))
    assert all(" " <= character <= "~" for character in line[:-1])
    values = json.loads(line.removeprefix("PORT_EVENT: "))
    assert values["label"] == label
    VALIDATOR.validate(values)


@pytest.mark.parametrize(
    ("host_ip", "protocol", "container_port", "url"),
    [
        ("127.0.0.1", None, 3000, "http://localhost:9000"),
        ("0.0.0.0", None, 443, "https://localhost:9000"),
        ("::", None, 8443, "https://localhost:9000"),
        ("::1", "http", 443, "http://localhost:9000"),
        ("192.168.1.5", "https", 3000, "https://192.168.1.5:9000"),
        ("fe80::1%eth0", None, 3000, "http://[fe80::1%25eth0]:9000"),
    ],
)
def test_urls(host_ip: str, protocol: Any, container_port: int, url: str) -> None:
    assert url_of(host_ip, 9000, protocol, container_port) == url


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ({"container_port": 5432}, None),
        ({"container_port": 5432, "protocol": "http"}, "http://localhost:3001"),
        ({"label": "Redis"}, None),
        ({"process": "redis-server *:3000"}, None),
        ({"process": "node server.js"}, "http://localhost:3001"),
    ],
    ids=str,
)
def test_server_known_not_to_speak_http_has_no_url(said: dict[str, Any], url: str | None) -> None:
    """Seen: `http://localhost:5432` for PostgreSQL, Redis and sshd; a link that no browser can use."""
    assert replace(EVENT, **{"label": None, "process": None, "protocol": None, **said}).url == url


def test_there_is_no_url_without_a_host_port_and_for_udp() -> None:
    assert replace(EVENT, host_port=None).url is None
    assert replace(EVENT, transport="udp").url is None


def test_a_row_of_the_list() -> None:
    row = list_row(
        replace(EVENT, replay=True),
        target="web-1",
        source="detected",
        lane="socat",
        age_s=1.26,
        connections_active=1,
        connections_total=2,
        connections_refused=3,
        bytes_in=4,
        bytes_out=5,
    )
    expected = [key for key in EVENT.to_json() if key not in ("event", "seq", "time")]
    assert list(row) == [*expected, "target", "source", "lane", "ageSeconds", "connections", "bytes", "lastRefusal"]
    assert row["ageSeconds"] == 1.3
    assert row["connections"] == {"active": 1, "total": 2, "refused": 3}
    assert row["bytes"] == {"in": 4, "out": 5}


def test_numbers_rise_and_go_on_after_a_restart(paths: StatePaths) -> None:
    written = [log_of(paths).append(EVENT) for _ in range(3)]
    assert [(event.seq, event.time) for event in written] == [(n, "2026-01-01T00:00:00.123Z") for n in (1, 2, 3)]
    assert [values["seq"] for values in read_events(paths)] == [1, 2, 3]
    assert [values["seq"] for values in read_events(paths, since=2)] == [3]
    assert stat.S_IMODE(paths.events.stat().st_mode) == 0o600
    assert json.loads(paths.events.read_text().splitlines()[0]) == written[0].to_json()


def test_the_log_is_bounded_and_read_across_the_rotation(paths: StatePaths) -> None:
    log = log_of(paths, max_bytes=2000)
    for _ in range(20):
        log.append(EVENT)
    assert sorted(path.name for path in paths.home.iterdir()) == ["events.jsonl", "events.jsonl.1"]
    assert paths.events.stat().st_size <= 2000
    assert paths.rotated_events.stat().st_size <= 2000
    numbers = [values["seq"] for values in read_events(paths)]
    assert numbers == list(range(numbers[0], 21))
    assert len(numbers) > 2000 // len(LINE)
    paths.events.unlink()
    assert log_of(paths).last_seq == json.loads(paths.rotated_events.read_text().splitlines()[-1])["seq"]


def test_a_torn_last_line_costs_itself_only(paths: StatePaths) -> None:
    log_of(paths).append(EVENT)
    with paths.events.open("ab") as file:
        file.write(b'{"port":3000,"seq":2')
    assert [values["seq"] for values in read_events(paths)] == [1]
    log_of(paths).append(EVENT)
    assert [values["seq"] for values in read_events(paths)] == [1, 2]


def test_a_full_disk_is_said_once_and_the_numbers_go_on(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    log = EventLog(paths, warnings.append)
    log.append(EVENT)
    with monkeypatch.context() as patch:
        write = os.write

        def write_half(descriptor: int, data: bytes) -> int:
            return write(descriptor, data[: len(data) // 2])

        def fail(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "write", write_half)
        assert log.append(EVENT).seq == 2
        patch.setattr(os, "write", fail)
        assert log.append(EVENT).seq == 3
        assert [values["seq"] for values in read_events(paths)] == [1]
    assert log.append(EVENT).seq == 4
    assert len(warnings) == 1
    assert "events.jsonl" in warnings[0]
    assert [values["seq"] for values in read_events(paths)] == [1, 2, 3, 4]


def test_events_that_wait_for_the_disk_are_bounded_and_flushed(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "MAX_UNWRITTEN", 3)
    log = EventLog(paths, lambda _text: None)
    paths.events.mkdir()
    for _ in range(5):
        log.append(EVENT)
    paths.events.rmdir()
    log.flush()
    assert [values["seq"] for values in read_events(paths)] == [3, 4, 5]
    log.flush()
    assert log.append(EVENT).seq == 6
    assert [values["seq"] for values in read_events(paths)] == [3, 4, 5, 6]


def test_no_log_is_no_events(paths: StatePaths) -> None:
    assert list(read_events(paths)) == []


@pytest.mark.parametrize(
    ("target", "accepted"),
    [("web-1", True), ("c0ff", True), ("c0f", False), ("/abs", True), ("fwd-1a2b3c4d", True), ("web", False)],
)
def test_events_of_a_target(target: str, accepted: bool, paths: StatePaths) -> None:
    log_of(paths).append(EVENT)
    assert len(list(read_events(paths, where=matches_target(target)))) == accepted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("node server.js --port 3000", "node server.js --port 3000"),
        ("node passport.js:3000 --author me", "node passport.js:3000 --author me"),
        ("mysql -p secret", "mysql -p secret"),
        ("srv --password=x y", "srv --password=*** y"),
        ("TOKEN=x srv", "TOKEN=*** srv"),
        ("PGPASSWORD=x DB_PASS=y psql", "PGPASSWORD=*** DB_PASS=*** psql"),
        ("srv --api-key x -v", "srv --api-key *** -v"),
        ("srv --apiKey x", "srv --apiKey ***"),
        ("srv --token --verbose", "srv --token --verbose"),
        ("srv --secret 'a b' c", "srv --secret *** c"),
        ("srv url=http://h/?token=x", "srv url=http://h/?token=***"),
        ("srv redis://me:x@h:1", "srv redis://me:***@h:1"),
        ("curl -H Authorization:Bearer 0123456789", "curl -H Authorization:Bearer ***"),
        ('srv {"password":"x","a":1}', 'srv {"password":***,"a":1}'),
        ("0\x1b --api-key hunter2", "0 --api-key ***"),
        ("0\x1b[ --api-key hunter2", "0 [ --api-key ***"),
        ("0\x1bTOKEN=hunter2", "0 TOKEN=***"),
        ("0\x1b[--api-key hunter2", "0 [--api-key ***"),
        ("a\0b\tc\nd", "a b c d"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x\u202ey\x9b", "red xy"),
    ],
)
def test_command_lines_are_shown_without_secrets_and_controls(text: str, shown: str) -> None:
    assert mask_command_line(text) == shown


@given(
    st.text(st.one_of(st.sampled_from("\x1b[]m\x07 -0"), st.characters())),
    st.sampled_from(["--password=", "TOKEN=", "--api-key ", "secret: "]),
)
def test_a_secret_never_shows_and_the_length_is_bounded(before: str, name: str) -> None:
    shown = mask_command_line(f"{before} {name}hunter2")
    assert "hunter2" not in shown
    assert len(shown) <= MAX_COMMAND_LINE


@pytest.mark.parametrize("text", ["-" * 10**6, "a-" * 10**5, "://a:" * 10**5, '"' * 10**6, "key=" * 10**5])
@pytest.mark.timeout(10)
def test_hostile_command_lines_cost_little(text: str) -> None:
    assert len(mask_command_line(text)) <= MAX_COMMAND_LINE

"""The table of actions: which event, in which situation, makes a notification or opens a browser; and their words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoforward.config.environment import NO_ENVIRONMENT, SessionEnvironment
from autoforward.core.model import ON_AUTO_FORWARD
from autoforward.desktop.decide import (
    BACK_S,
    MAX_BODY_LENGTH,
    MAX_NAMED_PORTS,
    MAX_OPENS,
    OPENS_WINDOW_S,
    Decision,
    Shown,
    Situation,
    browser_url,
    decide,
    is_back,
    may_open,
    notification,
)
from autoforward.detection.known_servers import INSPECTOR_PORTS
from autoforward.state.event_log import PortEvent

pytestmark = pytest.mark.unit

DESKTOP = SessionEnvironment.of({"DISPLAY": ":0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus"})
IN_CI = SessionEnvironment.of({**DESKTOP.to_json(), "CI": "true", "AUTOFORWARD_BROWSER": "/bin/browse"})
BROWSER_ALONE = SessionEnvironment.of({"AUTOFORWARD_BROWSER": "/bin/browse"})

EVENT = PortEvent(
    event="forwarded",
    container_port=3000,
    on_auto_forward="notify",
    auto_forwarded=True,
    host_port=3000,
    host_ip="127.0.0.1",
    id="fwd-00000001",
    transport="tcp",
    container_id="c0ffee",
    container_name="web",
    container_host="127.0.0.1",
    status="active",
)
HERE = Situation(DESKTOP, "linux")
OPEN, ONCE = {"on_auto_forward": "openBrowser"}, {"on_auto_forward": "openBrowserOnce"}
URL = "http://localhost:3000"

TABLE: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    # (why, what the event has, what the situation has, the action)
    ("notify is the default", {}, {}, "notify"),
    ("a server on all addresses is one like another", {"container_host": "db"}, {}, "notify"),
    ("UDP can be told of", {"transport": "udp"}, {}, "notify"),
    ("the setting switches notifications off", {}, {"notify": False}, "nothing"),
    ("`autoforward forward` has said so itself", {}, {"attached": False}, "nothing"),
    ("no desktop", {}, {"environment": NO_ENVIRONMENT}, "nothing"),
    ("a program for URLs shows no notifications", {}, {"environment": BROWSER_ALONE}, "nothing"),
    ("CI", {}, {"environment": IN_CI}, "nothing"),
    ("a Mac needs no variables", {}, {"environment": NO_ENVIRONMENT, "platform": "darwin"}, "notify"),
    ("a debugger's port", {"container_port": 9229}, {}, "nothing"),
    ("a debugger's port that somebody gave a name", {"container_port": 9229, "label": "api"}, {}, "notify"),
    ("the supervisor was restarted", {}, {"restored": True}, "nothing"),
    ("openBrowser", OPEN, {}, "open"),
    ("openBrowser opens each time", OPEN, {"opened": frozenset({"fwd-00000001"})}, "open"),
    ("openBrowser is no notification", OPEN, {"notify": False}, "open"),
    ("the supervisor was restarted", OPEN, {"restored": True}, "nothing"),
    ("nothing is opened in CI, not even by a program of the user's", OPEN, {"environment": IN_CI}, "nothing"),
    ("no display", OPEN, {"environment": NO_ENVIRONMENT}, "nothing"),
    ("a program of the user's needs no display", OPEN, {"environment": BROWSER_ALONE}, "open"),
    ("a Mac has a display", OPEN, {"environment": NO_ENVIRONMENT, "platform": "darwin"}, "open"),
    ("UDP has no URL", OPEN | {"transport": "udp"}, {}, "nothing"),
    ("no host port, no URL", OPEN | {"host_port": None}, {}, "nothing"),
    ("openBrowserOnce, the first time", ONCE, {}, "open"),
    ("openBrowserOnce, the second time", ONCE, {"opened": frozenset({"fwd-00000001"})}, "nothing"),
    ("openBrowserOnce, another port's second time", ONCE, {"opened": frozenset({"fwd-00000002"})}, "open"),
    ("the supervisor was restarted", ONCE, {"restored": True}, "nothing"),
    ("openBrowserOnce in CI", ONCE, {"environment": IN_CI}, "nothing"),
    ("openPreview is an editor's business", {"on_auto_forward": "openPreview"}, {}, "nothing"),
    ("silent", {"on_auto_forward": "silent"}, {}, "nothing"),
    ("ignore, though somebody forwards it", {"on_auto_forward": "ignore"}, {}, "nothing"),
    ("a late editor is told of what is up", {"replay": True}, {}, "nothing"),
    ("a late editor is told of what is up", OPEN | {"replay": True}, {}, "nothing"),
]


@pytest.mark.parametrize(("why", "event", "situation", "action"), TABLE)
def test_table_of_actions(why: str, event: dict[str, Any], situation: dict[str, Any], action: str) -> None:
    decision = decide(replace(EVENT, **event), replace(HERE, **situation))
    assert decision.action == action, why
    assert (decision.url == URL) == (action == "open")
    assert bool(decision.why) == (action == "nothing")
    assert decision.once == (action == "open" and event.get("on_auto_forward") == "openBrowserOnce")


def test_every_value_of_on_auto_forward_is_in_the_table() -> None:
    assert {event.get("on_auto_forward", "notify") for _, event, _, _ in TABLE} == set(ON_AUTO_FORWARD)


@pytest.mark.parametrize("name", ["updated", "reconnected", "waiting", "unforwarded", "ignored", "failed", "attached"])
@pytest.mark.parametrize("value", ON_AUTO_FORWARD)
def test_only_a_port_that_has_been_forwarded_is_acted_on(name: Any, value: Any) -> None:
    assert decide(replace(EVENT, event=name, on_auto_forward=value), HERE).action == "nothing"


def test_nodes_inspector_is_among_the_debuggers() -> None:
    assert 9229 in INSPECTOR_PORTS


# URLs.


@pytest.mark.parametrize(
    ("host_ip", "protocol", "url"),
    [
        ("127.0.0.1", None, "http://localhost:3000"),
        ("127.0.0.1", "https", "https://localhost:3000"),
        ("0.0.0.0", "http", "http://localhost:3000"),
        ("192.168.1.5", None, "http://192.168.1.5:3000"),
        ("fe80::1%eth0", None, "http://[fe80::1%25eth0]:3000"),
        ("fd00::5", "https", "https://[fd00::5]:3000"),
        ("evil.example/?", None, None),
        ("--new-window", None, None),
        ("fe80::1%" + "e" * 200, None, None),
        ("127.0.0.1", "javascript", None),
        ("127.0.0.1", "file", None),
    ],
)
def test_a_browser_is_given_urls_of_our_own_making_only(host_ip: str, protocol: Any, url: str | None) -> None:
    event = replace(EVENT, on_auto_forward="openBrowser", host_ip=host_ip, protocol=protocol)
    assert browser_url(event) == url
    assert decide(event, HERE).action == ("open" if url else "nothing")


def test_a_container_cannot_open_window_after_window() -> None:
    assert may_open([], 0.0)
    burst = [float(number) for number in range(MAX_OPENS)]
    assert may_open(burst[1:], MAX_OPENS)
    assert not may_open(burst, MAX_OPENS)
    assert may_open(burst, OPENS_WINDOW_S), "the first of them is long ago"


# Words.


def ports(*numbers: int, **changes: Any) -> list[PortEvent]:
    return [replace(EVENT, container_port=number, host_port=number, **changes) for number in numbers]


@pytest.mark.parametrize(
    ("events", "title", "body"),
    [
        (ports(3000), "Port 3000 of web", "http://localhost:3000"),
        (ports(3000, label="UI"), "Port 3000 of web", "UI: http://localhost:3000"),
        (ports(5432, container_host="db"), "Port db:5432 of web", "localhost:5432"),
        (ports(53, transport="udp"), "Port 53 of web", "localhost:53/udp"),
        (
            [replace(EVENT, host_port=3001, remapped=True, reason="host port 3000 is in use")],
            "Port 3000 of web",
            "http://localhost:3001 (host port 3000 is in use)",
        ),
        (ports(3000, 3001, 8080), "3 ports of web", "3000, 3001, 8080"),
        (
            [*ports(3000), replace(EVENT, container_port=80, host_port=8080), *ports(5432, container_host="db")],
            "3 ports of web",
            "3000, 80 on 8080, db:5432",
        ),
        (
            ports(*range(3000, 3128)),
            "128 ports of web",
            f"{', '.join(str(3000 + n) for n in range(MAX_NAMED_PORTS))} and 118 more",
        ),
    ],
)
def test_notification(events: list[PortEvent], title: str, body: str) -> None:
    assert notification(events) == (title, body)


def test_text_of_a_container_is_plain_and_bounded() -> None:
    """A label with markup could show a link, or a picture fetched from the network; one with controls could hide text."""
    hostile = '<a href="http://evil">x</a>&lt;\x1b[31m\u202e\n' + "y" * 5000
    [one] = ports(3000, label=hostile, container_name=hostile, remapped=True, reason=hostile, container_host=hostile)
    for events in ([one], [one] * 5):
        title, body = notification(events)
        for text in (title, body):
            assert text.isprintable()
            assert not set(text) & set("<>&")
            assert len(text) <= MAX_BODY_LENGTH


@pytest.mark.parametrize(
    ("shown", "process", "back"),
    [
        (None, "vite", False),
        (Shown("vite"), "vite", True),
        (Shown("vite", 1000.0), "vite", True),
        (Shown("vite", 1000.0), "flask", False),
        (Shown("vite", 1000.0), None, True),
        (Shown(None, 1000.0), "vite", True),
        (Shown("vite", 1001.0 - BACK_S), "vite", True),
        (Shown("vite", 999.0 - BACK_S), "vite", False),
    ],
)
def test_a_server_that_is_back_is_told_by_time_and_command(
    shown: Shown | None, process: str | None, back: bool
) -> None:
    assert is_back(shown, process, 1000.0) is back


@pytest.mark.parametrize("value", ["notify", "openBrowser", "openBrowserOnce"])
def test_server_that_is_back_has_no_action(value: str) -> None:
    event = replace(EVENT, on_auto_forward=value)
    assert decide(event, HERE).action != "nothing"
    assert decide(event, replace(HERE, back=True)) == Decision("nothing", "its server was restarted")

"""What follows an event on the host: collected notifications, opened URLs, child processes that are reaped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoforward.config.environment import NO_ENVIRONMENT, SessionEnvironment
from autoforward.config.session_record import SessionRecord
from autoforward.desktop import actions as module
from autoforward.desktop import launcher as desktop_module
from autoforward.desktop.actions import ActingSession, Actions
from autoforward.desktop.decide import MAX_OPENS
from autoforward.desktop.launcher import Desktop, opener
from autoforward.state.event_log import PortEvent
from tests.support.containers import eventually
from tests.support.desktops import FakeBrowser, notification_server, why_no_notifications
from tests.support.harness import in_loop
from tests.support.world import RECORD

pytestmark = pytest.mark.local

HERE = SessionEnvironment.of({"DISPLAY": ":0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus"})
EVENT = PortEvent(
    event="forwarded",
    container_port=3000,
    on_auto_forward="notify",
    host_port=3000,
    host_ip="127.0.0.1",
    transport="tcp",
    container_id=RECORD.container_id,
    container_name="web",
    container_host="127.0.0.1",
)


class OneSession:
    """A session whose first snapshot has been applied when `applied` says so."""

    def __init__(self, environment: SessionEnvironment = HERE) -> None:
        self.record: SessionRecord = replace(RECORD, environment=environment)
        self.applied = asyncio.Event()

    async def settled(self) -> None:
        await self.applied.wait()


class FakeDesktop:
    """Keeps what it was asked for, and when (seconds of the loop)."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.shown: list[tuple[str, str]] = []
        self.shown_at_s: list[float] = []
        self.news = asyncio.Event()

    def open_url(self, url: str, _environment: SessionEnvironment) -> None:
        self.opened.append(url)

    def show(self, title: str, body: str, _environment: SessionEnvironment) -> None:
        self.shown.append((title, body))
        self.shown_at_s.append(asyncio.get_running_loop().time())
        self.news.set()

    async def wait(self, count: int) -> None:
        while len(self.shown) < count:
            self.news.clear()
            await self.news.wait()


class Rig:
    def __init__(self, environment: SessionEnvironment = HERE) -> None:
        self.session = OneSession(environment)
        self.desktop = FakeDesktop()
        self.actions = Actions(self._find, self._remember, self.desktop, "linux")

    def _find(self, container_id: str) -> ActingSession | None:
        return self.session if container_id == self.session.record.container_id else None

    def _remember(self, session: ActingSession, forward_id: str) -> None:
        session.record = session.record.with_opened(forward_id)

    def event(self, name: str, container_port: int = 3000, value: Any = "notify", **changes: Any) -> None:
        event = replace(
            EVENT,
            event=name,
            container_port=container_port,
            host_port=container_port,
            id=f"fwd-{container_port:08x}",
            on_auto_forward=value,
        )
        self.actions.on_event(replace(event, **changes))


# -- notifications -------------------------------------------------------------------------------


@in_loop
async def test_a_burst_is_one_notification() -> None:
    rig = Rig()
    for container_port in (3000, 3001, 8080):
        rig.event("forwarded", container_port)
    assert rig.desktop.shown == [], "the first of a burst waits for the others"
    await rig.desktop.wait(1)
    assert rig.desktop.shown == [("3 ports of web", "3000, 3001, 8080")]
    assert rig.actions._notices[RECORD.session_id].timer is None, "nothing more is on its way"


@in_loop
async def test_bursts_one_after_the_other_do_not_bury_the_desktop() -> None:
    rig = Rig()
    rig.event("forwarded", 3000)
    await rig.desktop.wait(1)
    for container_port in range(4000, 4010):
        rig.event("forwarded", container_port)
        await asyncio.sleep(0)
    await rig.desktop.wait(2)
    assert [title for title, _ in rig.desktop.shown] == ["Port 3000 of web", "10 ports of web"]
    first_s, second_s = rig.desktop.shown_at_s
    assert second_s - first_s >= module.NOTIFY_GAP_S


@pytest.mark.parametrize("end", ["unforwarded", "waiting"])
def test_a_server_that_is_gone_by_then_is_not_told_of(end: str) -> None:
    @in_loop
    async def check() -> None:
        rig = Rig()
        rig.event("forwarded", 3000)
        rig.event("forwarded", 3001)
        rig.event(end, 3000)
        await rig.desktop.wait(1)
        assert rig.desktop.shown == [("Port 3001 of web", "http://localhost:3001")]

    check()


@in_loop
async def test_a_session_that_ends_takes_its_notifications_along() -> None:
    rig = Rig()
    rig.event("forwarded", 3000)
    timer = rig.actions._notices[RECORD.session_id].timer
    assert timer is not None
    rig.event("detached")
    assert timer.cancelled()
    assert rig.actions._notices == {}


@in_loop
async def test_switched_off_by_the_option() -> None:
    rig = Rig()
    rig.session.record = replace(rig.session.record, options=replace(RECORD.options, notify=False))
    rig.event("forwarded", 3000)
    assert rig.actions._notices[RECORD.session_id].timer is None


def test_without_a_desktop_there_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def check() -> None:
        rig = Rig(NO_ENVIRONMENT)
        for container_port in (3000, 3001, 3002):
            rig.event("forwarded", container_port)
        assert rig.actions._notices[RECORD.session_id].timer is None

    with caplog.at_level(logging.DEBUG, module.__name__):
        check()
    [line] = [record for record in caplog.records if record.name == module.__name__]
    assert (line.levelname, "no desktop" in line.getMessage()) == ("DEBUG", True)


# -- opening -------------------------------------------------------------------------------------


@in_loop
async def test_open_browser_opens_each_time_and_once_opens_once() -> None:
    rig = Rig()
    for number in range(3):
        rig.event("forwarded", 3000, "openBrowser", process=f"server {number}")
        rig.event("forwarded", 4000, "openBrowserOnce", process=f"server {number}")
    assert rig.desktop.opened.count("http://localhost:3000") == 3
    assert rig.desktop.opened.count("http://localhost:4000") == 1
    assert rig.session.record.opened == (f"fwd-{4000:08x}",)


@in_loop
async def test_a_server_that_was_restarted_is_neither_opened_nor_shown_again() -> None:
    """Three tabs in four starts, before."""
    rig = Rig()
    rig.event("forwarded", 3000, "openBrowser", process="vite")
    rig.event("forwarded", 3001)
    rig.event("updated", 3001, process="flask run")
    await rig.desktop.wait(1)
    for end, command in (("unforwarded", "vite"), ("waiting", "vite"), ("unforwarded", None), ("unforwarded", "vite")):
        rig.event(end, 3000, "openBrowser")
        rig.event("forwarded", 3000, "openBrowser", process=command)
        rig.event(end, 3001)
        rig.event("forwarded", 3001, process=command and "flask run")
    notices = rig.actions._notices[RECORD.session_id]
    assert (rig.desktop.opened, notices.pending, notices.timer) == (["http://localhost:3000"], {}, None)
    # Another server on the number is news.
    rig.event("unforwarded", 3000, "openBrowser")
    rig.event("forwarded", 3000, "openBrowser", process="python3 -m http.server 3000")
    rig.event("unforwarded", 3001)
    rig.event("forwarded", 3001, process="node other.js")
    await rig.desktop.wait(2)
    assert len(rig.desktop.opened) == 2
    assert rig.desktop.shown[-1] == ("Port 3001 of web", "http://localhost:3001")


@in_loop
async def test_a_server_that_was_gone_before_it_was_shown_is_shown_when_it_is_back() -> None:
    rig = Rig()
    rig.event("forwarded", process="vite")
    rig.event("unforwarded")
    rig.event("forwarded", process="vite")
    await rig.desktop.wait(1)
    assert rig.desktop.shown == [("Port 3000 of web", "http://localhost:3000")]


def test_a_container_that_opens_port_after_port_does_not_open_window_after_window(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @in_loop
    async def check() -> None:
        rig = Rig()
        for container_port in range(4000, 4100):
            rig.event("forwarded", container_port, "openBrowserOnce")
        assert len(rig.desktop.opened) == MAX_OPENS
        assert len(rig.session.record.opened) == MAX_OPENS, "what was not opened is not taken for it"

    check()
    assert "too many" in caplog.text


@in_loop
async def test_servers_of_a_restored_session_are_not_new() -> None:
    rig = Rig()
    rig.actions.restore(rig.session)
    rig.event("forwarded", 3000)
    rig.event("forwarded", 3001, "openBrowser")
    rig.event("forwarded", 3002, "openBrowserOnce")
    assert rig.actions._notices[RECORD.session_id].timer is None
    rig.session.applied.set()
    await asyncio.gather(*rig.actions._restoring.values())
    await asyncio.sleep(0)
    assert rig.desktop.opened == []

    rig.event("forwarded", 3003, "openBrowser")
    rig.event("forwarded", 3004)
    await rig.desktop.wait(1)
    assert rig.desktop.opened == ["http://localhost:3003"]
    assert rig.desktop.shown == [("Port 3004 of web", "http://localhost:3004")]


@in_loop
async def test_an_end_in_the_middle_of_everything() -> None:
    rig = Rig()
    rig.actions.restore(rig.session)
    [restoring] = rig.actions._restoring.values()
    rig.event("forwarded", 3000, container_id="somebody else's")
    rig.event("forwarded", 3000, container_id=None)
    assert rig.actions._notices == {}
    rig.actions.close()
    await asyncio.wait([restoring])
    assert restoring.cancelled()


# -- the desktop's children ----------------------------------------------------------------------


@pytest.fixture
def no_children() -> Iterator[None]:
    """Afterwards no thread and no child of a desktop is left, zombies included."""
    before = {child.pid for child in psutil.Process().children()}
    yield
    eventually(lambda: not [t for t in threading.enumerate() if t.name == "autoforward-desktop"], timeout_s=20)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_browser_gets_the_url_alone_and_the_sessions_environment(
    tmp_path: Path, no_children: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = FakeBrowser(tmp_path)
    monkeypatch.setenv("AUTOFORWARD_HOME", "/home/of/ours")
    monkeypatch.setenv("WAYLAND_DISPLAY", "of-the-supervisor")
    monkeypatch.setenv("LANG", "C.UTF-8")
    environment = SessionEnvironment.of({"AUTOFORWARD_BROWSER": str(browser.path), "DISPLAY": ":7"})
    Desktop().open_url("http://localhost:3000", environment)
    assert browser.wait(1) == ["http://localhost:3000"]
    [call] = browser.calls
    given: Any = call["environment"]
    assert given["DISPLAY"] == ":7"
    assert given["LANG"] == "C.UTF-8"
    assert "WAYLAND_DISPLAY" not in given
    assert [name for name in given if name.startswith("AUTOFORWARD_")] == ["AUTOFORWARD_BROWSER"]


def test_a_browser_that_is_not_there_is_a_line_in_the_log(no_children: None, caplog: pytest.LogCaptureFixture) -> None:
    Desktop().open_url("http://localhost:3000", SessionEnvironment.of({"AUTOFORWARD_BROWSER": "/none/such"}))
    eventually(lambda: "cannot run /none/such" in caplog.text, timeout_s=20)


def test_a_browser_that_fails_is_a_line_in_the_log(no_children: None, caplog: pytest.LogCaptureFixture) -> None:
    Desktop().open_url("http://localhost:3000", SessionEnvironment.of({"AUTOFORWARD_BROWSER": "/bin/false"}))
    eventually(lambda: "/bin/false ended with status 1" in caplog.text, timeout_s=20)


def test_a_browser_that_runs_on_blocks_nobody_and_is_counted(
    tmp_path: Path, no_children: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desktop_module, "MAX_OPENERS", 2)
    program, pids = tmp_path / "browser", tmp_path / "pids"
    pids.touch()
    program.write_text(f"#!/bin/sh\necho $$ >>{pids}\nexec sleep 600\n")
    program.chmod(0o755)
    environment = SessionEnvironment.of({"AUTOFORWARD_BROWSER": str(program)})
    desktop = Desktop()
    for _ in range(3):
        desktop.open_url("http://localhost:3000", environment)
    assert "2 openers still run" in caplog.text
    running = eventually(lambda: (found := pids.read_text().split()) and len(found) == 2 and found, timeout_s=20)
    for pid in running:
        os.kill(int(pid), signal.SIGTERM)


def test_which_program_opens_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = SessionEnvironment.of({"AUTOFORWARD_BROWSER": "/opt/browse --new", "DISPLAY": ":0"})
    assert opener(chosen, "darwin") == ["/opt/browse --new"], "a program, not a command line"
    assert opener(HERE, "darwin") == ["/usr/bin/open"]
    assert opener(HERE, "linux") == [sys.executable, "-P", "-m", "webbrowser"]
    tool = tmp_path / "xdg-open"
    tool.write_text("")
    tool.chmod(0o755)
    assert opener(HERE, "linux") == [str(tool)]


def test_notification_over_a_bus(no_children: None) -> None:
    if reason := why_no_notifications():
        pytest.skip(reason)
    with notification_server() as server:
        Desktop().show("3 ports of web", "3000, 3001, 8080", SessionEnvironment.of(server.environment))
        [shown] = server.wait(1)
        eventually(lambda: not [t for t in threading.enumerate() if t.name == "autoforward-desktop"], timeout_s=20)
    assert shown == {"app": "autoforward", "title": "3 ports of web", "body": "3000, 3001, 8080"}


def test_a_bus_that_is_gone_is_a_line_for_debugging(
    tmp_path: Path, no_children: None, caplog: pytest.LogCaptureFixture
) -> None:
    gone = SessionEnvironment.of({"DISPLAY": ":9", "DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/gone"})
    with caplog.at_level(logging.DEBUG, desktop_module.__name__):
        Desktop().show("title", "body", gone)
        eventually(lambda: caplog.records, timeout_s=20)
    [record] = caplog.records
    assert (record.levelname, record.getMessage().startswith("no notification: ")) == ("DEBUG", True)


def test_a_bus_that_does_not_answer_is_given_up(
    tmp_path: Path, no_children: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desktop_module, "NOTIFIER_TIMEOUT_S", 0.5)
    with socket.socket(socket.AF_UNIX) as silent, caplog.at_level(logging.DEBUG, desktop_module.__name__):
        silent.bind(str(tmp_path / "bus"))
        silent.listen()
        address = f"unix:path={tmp_path}/bus"
        began_s = time.monotonic()
        Desktop().show("title", "body", SessionEnvironment.of({"DISPLAY": ":9", "DBUS_SESSION_BUS_ADDRESS": address}))
        assert time.monotonic() - began_s < desktop_module.NOTIFIER_TIMEOUT_S, "the supervisor goes on"
        eventually(lambda: "timed out" in caplog.text, timeout_s=20)

"""`onAutoForward` on a real engine: a browser that records its calls, a bus of our own for notifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.nightly import times
from tests.support.containers import Container, Server, eventually
from tests.support.desktops import FakeBrowser, NotificationServer, notification_server, why_no_notifications
from tests.support.observing import Command, dev_container_labels, free_port, logged, new_folder, row_of, wait_event

pytestmark = pytest.mark.docker

Env = dict[str, str | None]


@pytest.fixture
def browser(tmp_path: Path) -> FakeBrowser:
    return FakeBrowser(tmp_path)


@pytest.fixture
def bus() -> Iterator[NotificationServer]:
    if reason := why_no_notifications():
        pytest.skip(reason)
    with notification_server() as server:
        yield server


@pytest.fixture
def app(container: ContainerFactory) -> Callable[..., Container]:
    """A container whose devcontainer.json has these values of onAutoForward, by port."""

    def make(**actions: list[int]) -> Container:
        attributes = {str(port): {"onAutoForward": name} for name, ports in actions.items() for port in ports}
        return container(labels=dev_container_labels(new_folder(), portsAttributes=attributes))

    return make


def url(port: int) -> str:
    return f"http://localhost:{port}"


def start(home: Path, app: Container, port: int, text: str = "hello") -> Server:
    """Start a server and wait until it is forwarded, on the number that it has. With another text it is another server."""
    since = logged(home)[-1]["seq"]
    server = app.start_server(port=port, text=text)
    assert wait_event(home, "forwarded", port, since=since)["localPort"] == port
    return server


def stop(home: Path, server: Server) -> None:
    since = logged(home)[-1]["seq"]
    server.stop()
    wait_event(home, "unforwarded", server.port, since=since)


def lose_supervisor(home: Path, run: Runner, *, kill: bool) -> None:
    """End it, and let the next command bring another one, with another environment than the sessions'."""
    process = supervisor_of(home)
    assert process is not None
    if kill:
        process.kill()
    else:
        process.terminate()
    process.wait(20)
    run("autoforward", "list", check=0)
    after = supervisor_of(home)
    assert after is not None
    assert after.pid != process.pid


def test_open_browser_once_over_restarts_of_the_server_and_of_the_supervisor(
    app: Callable[..., Container], run: Runner, home: Path, browser: FakeBrowser
) -> None:
    once, marker = free_port(), free_port()
    one = app(openBrowserOnce=[once], openBrowser=[marker])
    env: Env = {"AUTOFORWARD_BROWSER": str(browser.path)}
    run("autoforward", "attach", one.name, env=env, check=0)
    server = start(home, one, once)
    assert browser.wait(1) == [url(once)]
    for _ in range(times(1, 3)):
        stop(home, server)
        run("autoforward", "attach", one.name, env=env, check=0)  # other options, the same session
        server = start(home, one, once)
    for kill in (True, False):
        lose_supervisor(home, run, kill=kill)
        row_of(run, once, status="active")
        stop(home, server)
        server = start(home, one, once)
    # What comes last is opened; by then everything before it would have been.
    start(home, one, marker)
    assert browser.wait(2) == [url(once), url(marker)]

    # The session ends, and so does its memory.
    run("autoforward", "detach", one.name, check=0)
    run("autoforward", "attach", one.name, env=env, check=0)
    assert sorted(map(str, browser.wait(4))) == sorted([url(once), url(marker)] * 2)


def test_open_browser_opens_for_each_server_but_not_for_a_restart_or_a_new_supervisor(
    app: Callable[..., Container], run: Runner, home: Path, browser: FakeBrowser
) -> None:
    each, marker, preview, silent = (free_port() for _ in range(4))
    one = app(openBrowser=[each, marker], openPreview=[preview], silent=[silent])
    run("autoforward", "attach", one.name, env={"AUTOFORWARD_BROWSER": str(browser.path)}, check=0)
    server = start(home, one, each, "first")
    for count, text in enumerate(("first", "second", "third"), start=1):  # the first is a restart
        stop(home, server)
        server = start(home, one, each, text)
        assert browser.wait(count) == [url(each)] * count
    start(home, one, preview)
    start(home, one, silent)
    for kill in (True, False):
        lose_supervisor(home, run, kill=kill)
        row_of(run, each, status="active")
    with Command(home, "autoforward", "events", "--follow") as follower:
        follower.wait_line(lambda line: f'"port":{each},' in line and '"replay":true' in line)
    start(home, one, marker)
    assert browser.wait(4) == [url(each)] * 3 + [url(marker)]
    [event] = [event for event in logged(home, preview) if event["event"] == "forwarded"][:1]
    assert event["onAutoForward"] == "openPreview", "this one is an editor's to act on"


def test_no_browser_opens_in_ci_or_without_a_display(
    app: Callable[..., Container], run: Runner, home: Path, browser: FakeBrowser
) -> None:
    ports = [free_port() for _ in range(3)]
    one = app(openBrowser=ports)
    chosen: Env = {"AUTOFORWARD_BROWSER": str(browser.path)}
    run("autoforward", "attach", one.name, env={**chosen, "CI": "true", "AUTOFORWARD_LOG_LEVEL": "DEBUG"}, check=0)
    start(home, one, ports[0])
    # Attached again from another place: what counts is that one's environment. No display, and no program chosen.
    run("autoforward", "attach", one.name, env={"BROWSER": str(browser.path)}, check=0)
    start(home, one, ports[1])
    run("autoforward", "attach", one.name, env=chosen, check=0)
    start(home, one, ports[2])
    assert browser.wait(1) == [url(ports[2])]
    log = (home / "supervisor.log").read_text()
    assert log.count("nothing is opened or shown: CI is set") == 1
    assert log.count("nothing is opened or shown: there is no display") == 1


def test_a_burst_is_one_notification_over_the_bus(
    app: Callable[..., Container], run: Runner, home: Path, bus: NotificationServer
) -> None:
    ports = sorted(free_port() for _ in range(3))
    silent, later = free_port(), free_port()
    one = app(silent=[silent])
    for port in (*ports, silent, 9229):
        one.start_server(port=port)
    run("autoforward", "attach", one.name, env=dict(bus.environment), check=0)
    row_of(run, 9229, status="active")
    [shown] = bus.wait(1)
    # The host's numbers are theirs, unless somebody else has one of them.
    assert (shown["app"], shown["title"]) == ("autoforward", f"3 ports of {one.name}")
    assert shown["body"] == ", ".join(map(str, ports))

    for kill in (True, False):
        lose_supervisor(home, run, kill=kill)
        row_of(run, ports[0], status="active")
    start(home, one, later)
    assert bus.wait(2)[1:] == [{"app": "autoforward", "title": f"Port {later} of {one.name}", "body": url(later)}]


def test_without_a_bus_there_is_one_line_in_the_log(
    app: Callable[..., Container], run: Runner, home: Path, browser: FakeBrowser
) -> None:
    marker, ports = free_port(), [free_port() for _ in range(3)]
    one = app(openBrowser=[marker])
    env: Env = {"AUTOFORWARD_BROWSER": str(browser.path), "AUTOFORWARD_LOG_LEVEL": "DEBUG"}
    run("autoforward", "attach", one.name, env=env, check=0)
    for port in (*ports, marker):
        start(home, one, port)
    assert browser.wait(1) == [url(marker)]
    eventually(lambda: f"opening {url(marker)}" in (home / "supervisor.log").read_text())
    log = (home / "supervisor.log").read_text()
    assert log.count("there is no desktop to show notifications on") == 1
    assert " WARNING " not in log
    assert " ERROR " not in log

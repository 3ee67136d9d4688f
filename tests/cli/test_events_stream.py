"""`autoforward events`: what was written, what is up now for whoever comes late, and what happens from then on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner, script, supervisor_of
from tests.support.containers import event_lines, eventually
from tests.support.observing import Command, free_port, logged, names, row_of, rows, wait_event, wait_steps

pytestmark = pytest.mark.docker

FIRST_KEYS = [
    "port",
    "protocol",
    "label",
    "onAutoForward",
    "autoForwarded",
    "localPort",
    "hostIp",
    "description",
    "openPreview",
    "requireLocalPort",
    "elevateIfNeeded",
]


def _is_event(event: str, container_port: int | None, **values: Any) -> Any:
    """Whether a line is that event."""

    def matches(line: str) -> bool:
        return line.startswith("PORT_EVENT: ") and any(
            (found["event"], found["port"]) == (event, container_port)
            and all(found.get(key) == value for key, value in values.items())
            for found in event_lines(line)
        )

    return matches


def test_events_prints_what_the_log_holds(container: ContainerFactory, run: Runner, home: Path) -> None:
    apps = [container(), container()]
    servers = [app.start_server(port=free_port()) for app in apps]
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    run("autoforward", "detach", "--all", check=0)
    eventually(lambda: names(logged(home)).count("detached") == 2, what="both are detached")
    text = run("autoforward", "events", check=0).stdout
    lines = text.splitlines()
    assert all(line.startswith('PORT_EVENT: {"port":') for line in lines)
    events = list(event_lines(text))
    assert [list(event)[:11] for event in events] == [FIRST_KEYS] * len(events)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events == logged(home)
    assert not any("replay" in event for event in events)

    later = list(event_lines(run("autoforward", "events", "--since", "2", check=0).stdout))
    assert later == events[2:]
    about = list(event_lines(run("autoforward", "events", "--target", apps[0].name, check=0).stdout))
    assert {event["containerName"] for event in about} == {apps[0].name}
    assert [(event["event"], event["port"]) for event in about if event["event"] != "updated"] == [
        ("attached", None),
        ("forwarded", servers[0].port),
        ("unforwarded", servers[0].port),
        ("detached", None),
    ]
    assert [event["status"] for event in about] == [None, "active", None, None]


def test_events_without_a_log_prints_nothing(run: Runner, home: Path) -> None:
    assert run("autoforward", "events", check=0).stdout == ""
    assert supervisor_of(home) is None


def test_late_follower_hears_first_what_is_up_and_then_what_happens(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    up, gone = app.start_server(port=free_port()), app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, up.port, status="active")
    gone.stop()
    last_seq = wait_event(home, "unforwarded", gone.port)["seq"]
    with Command(home, "autoforward", "events", "--follow") as follower:
        follower.wait_line(_is_event("forwarded", up.port, replay=True))
        [replayed] = follower.events()
        assert (replayed["seq"], replayed["localPort"], replayed["id"]) == (last_seq, row["localPort"], row["id"])
        new = app.start_server(port=free_port())
        follower.wait_line(_is_event("forwarded", new.port))
        new.stop()
        follower.wait_line(_is_event("unforwarded", new.port))
        live = follower.events()[1:]
        eventually(lambda: live == logged(home, since=last_seq), what="the same is logged")
        follower.signal(signal.SIGINT)
        assert follower.wait() == 0
        assert not [line for line in follower.lines if not line.startswith("PORT_EVENT: ")]


def test_follower_of_one_target(container: ContainerFactory, run: Runner, home: Path) -> None:
    apps = [container(), container()]
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    with Command(home, "autoforward", "events", "--follow", "--target", apps[1].name, "--since", "0") as follower:
        follower.wait_line(_is_event("attached", None))
        other, own = (app.start_server(port=free_port()) for app in apps)
        wait_event(home, "forwarded", other.port)
        follower.wait_line(_is_event("forwarded", own.port))
        assert {event["containerName"] for event in follower.events()} == {apps[1].name}


def test_follower_that_names_where_it_was(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    with Command(home, "autoforward", "events", "--follow", "--since", "1") as follower:
        follower.wait_line(_is_event("forwarded", server.port))
        server.stop()
        follower.wait_line(_is_event("unforwarded", server.port))
        events = follower.events()
        eventually(lambda: events == logged(home, since=1), what="each once, in order, and none as a replay")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_follower_outlives_the_supervisor(container: ContainerFactory, run: Runner, home: Path, number: int) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    with Command(home, "autoforward", "events", "--follow") as follower:
        follower.wait_line(_is_event("forwarded", server.port, replay=True))
        supervisor = supervisor_of(home)
        assert supervisor is not None
        os.kill(supervisor.pid, number)
        supervisor.wait(timeout=20)
        if number == signal.SIGTERM:
            follower.wait_line(_is_event("unforwarded", server.port))
            follower.wait_line(_is_event("detached", None))
        assert follower.is_running
        heard = len(follower.events())
        assert rows(run), "this brings the session back"
        eventually(
            lambda: any((e["event"], e["port"]) == ("forwarded", server.port) for e in follower.events()[heard:]),
            timeout_s=20,
        )
        new = app.start_server(port=free_port())
        follower.wait_line(_is_event("forwarded", new.port))
        assert follower.is_running


def test_follower_that_comes_before_everything(container: ContainerFactory, run: Runner, home: Path) -> None:
    """An editor may start to listen before there is a supervisor; and it does not start or keep one."""
    with Command(home, "autoforward", "events", "--follow") as follower:
        app = container()
        server = app.start_server(port=free_port())
        assert supervisor_of(home) is None
        run("autoforward", "attach", app.name, env={"AUTOFORWARD_IDLE_EXIT_S": "1"}, check=0)
        follower.wait_line(_is_event("forwarded", server.port))
        supervisor = supervisor_of(home)
        assert supervisor is not None
        run("autoforward", "detach", app.name, check=0)
        supervisor.wait(timeout=20)
        assert follower.is_running
        follower.wait_line(_is_event("unforwarded", server.port))


def test_follower_into_a_pipe_that_closes(container: ContainerFactory, run: Runner, home: Path) -> None:
    """`autoforward events --follow | head -1` ends without a complaint."""
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    shell = f"{script('autoforward')} events --follow | head -1"
    with Command(home, "bash", "-o", "pipefail", "-c", shell) as piped:
        piped.wait_line(_is_event("forwarded", server.port))
        # The next line has nobody to read it.
        server.stop()
        wait_event(home, "unforwarded", server.port)
        piped.wait()
        assert len(piped.lines) == 1, piped.lines
    wait_steps(home, server.port, ["forwarded", "unforwarded"])


def test_follower_ends_with_its_reader(home: Path) -> None:
    """An editor that was killed leaves none behind, also where no event will come that could not be written."""
    shell = f"{script('autoforward')} events --follow | sleep 0.1"
    with Command(home, "bash", "-o", "pipefail", "-c", shell) as piped:
        assert piped.wait() == 0

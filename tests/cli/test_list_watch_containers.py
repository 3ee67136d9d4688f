"""`list --watch` against a real container: what is carried is seen, keys do what they say, a supervisor may go and come."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script, supervisor_of
from tests.support.containers import eventually, fetch, is_refused
from tests.support.desktops import FakeBrowser
from tests.support.observing import free_port, row_of, rows
from tests.support.terminal import Terminal

pytestmark = pytest.mark.docker


def test_a_person_at_the_screen(container: ContainerFactory, run: Runner, home: Path, tmp_path: Path) -> None:
    app = container()
    big = app.start_server(port=free_port(), text="x" * 100_000)
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, big.port, status="active")
    browser = FakeBrowser(tmp_path)
    desk = {"AUTOFORWARD_BROWSER": str(browser.path), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "TMUX": None}
    with Terminal(
        [script("autoforward"), "list", "--watch"], command_env(home, desk), columns=140, lines=20
    ) as terminal:
        terminal.wait_for("1 port: 1 active")
        # What goes through it is a rate, and then a trend.
        trend = re.compile(r"\d[kM] +[ ▁-█]*[▁-█]$")
        eventually(
            lambda: fetch(row["url"]) and trend.search(terminal.lines[2]), timeout_s=60, what="a rate and a trend"
        )
        # A server that starts is there without a key; one that stops goes.
        other = app.start_server(port=free_port())
        lines = terminal.wait_for(f"http://localhost:{other.port} ")
        assert "2 ports: 2 active" in lines[0]
        terminal.type("j")
        terminal.wait_for(f"> http://localhost:{other.port}")
        terminal.type("o")
        assert browser.wait(1) == [f"http://localhost:{other.port}"]
        terminal.type("c")
        terminal.wait_for(f"copied http://localhost:{other.port}")
        terminal.type("s")
        terminal.wait_for(f"stopped {app.name} port {other.port}")
        terminal.wait_for("1 port: 1 active")
        assert is_refused("127.0.0.1", other.port)
        assert [one["port"] for one in rows(run)] == [big.port]

        # Killed, it is missed; it is not this command that brings it back.
        process = supervisor_of(home)
        assert process is not None
        process.kill()
        terminal.wait_for("no supervisor")
        assert supervisor_of(home) in (None, process)
        run("autoforward", "list", check=0)
        terminal.wait_for(f"> http://localhost:{big.port}")
        terminal.type("q")
        assert terminal.wait_ended() == 0


def test_list_watch_keeps_no_supervisor_alive(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0, env={"AUTOFORWARD_IDLE_EXIT_S": "1"})
    desk = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    with Terminal([script("autoforward"), "list", "--watch"], command_env(home, desk)) as terminal:
        terminal.wait_for(f"localhost:{server.port}")
        run("autoforward", "detach", app.name, check=0)
        terminal.wait_for("no supervisor")
        eventually(lambda: supervisor_of(home) is None, timeout_s=30)
        terminal.type("\x03")
        assert terminal.wait_ended() == 0

"""`list --watch` in a real pseudo-terminal, seen through an emulator, with a supervisor that says what it is told to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_live_view import some_rows
from tests.conftest import Runner, command_env, script
from tests.support.containers import eventually
from tests.support.fake_supervisor import FakeSupervisor
from tests.support.terminal import Terminal

pytestmark = pytest.mark.local

TERMINAL = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": None, "LC_CTYPE": None, "NO_COLOR": None}

Open = Callable[..., Terminal]


@pytest.fixture
def supervisor(home: Path) -> Iterator[FakeSupervisor]:
    rows = some_rows(3)
    rows[1].update(status="waiting", label="shop", process="node server.js")
    with FakeSupervisor(home, rows) as supervisor:
        yield supervisor


@pytest.fixture
def watch(home: Path) -> Iterator[Open]:
    """`list --watch` on a terminal of that size."""
    with ExitStack() as stack:

        def start(*argv: str, env: dict[str, str | None] | None = None, **size: int) -> Terminal:
            command = argv or (script("autoforward"), "list", "--watch")
            return stack.enter_context(Terminal(command, command_env(home, {**TERMINAL, **(env or {})}), **size))

        yield start


def is_given_back(terminal: Terminal) -> bool:
    """As soon as what was written last has come through."""
    terminal.wait(lambda _lines: terminal.shows_cursor and not terminal.is_other_screen, what="the first screen")
    return bool(terminal.settings == terminal.settings_before)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_screen_and_its_end(columns: int, watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch(columns=columns, lines=12)
    lines = terminal.wait_for("q quit")
    assert lines[0].startswith("autoforward  3 ports: 2 active, 1 waiting")
    assert lines[1].split()[:2] == ["LOCAL", "TARGET"]
    assert [line.split()[0] for line in lines[2:5]] == [
        ">",
        *(f"{'http://' if columns > 80 else ''}localhost:{port}" for port in (3001, 3002)),
    ]
    assert lines[-2].startswith("fwd-00000000  http://localhost:3000 -> web:3000")
    assert terminal.is_other_screen
    assert not terminal.shows_cursor
    terminal.type("q")
    assert terminal.wait_ended() == 0
    assert is_given_back(terminal)


def test_keys_of_the_live_table_do_what_they_say(watch: Open, supervisor: FakeSupervisor, home: Path) -> None:
    opened = home / "opened"
    browser = home / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {opened}\n')
    browser.chmod(0o755)
    terminal = watch(env={"AUTOFORWARD_BROWSER": str(browser)})
    terminal.wait_for("q quit")
    terminal.type("j")
    terminal.wait_for("> localhost:3001")
    terminal.type("\x1b[B\x1bOB")
    terminal.wait_for("> localhost:3002 ")
    terminal.type("k")
    terminal.wait_for("> localhost:3001")
    terminal.type("o")
    terminal.wait_for("opening http://localhost:3001")
    eventually(lambda: opened.exists() and opened.read_text() == "http://localhost:3001\n", timeout_s=30)
    terminal.type("\r")
    eventually(lambda: opened.read_text() == "http://localhost:3001\n" * 2, timeout_s=30)
    terminal.type("c")
    terminal.wait_for("copied http://localhost:3001 (OSC 52")
    assert b"\x1b]52;c;aHR0cDovL2xvY2FsaG9zdDozMDAx\x07" in terminal.raw
    terminal.type("s")
    lines = terminal.wait_for("stopped web port 3001")
    assert supervisor.asked == [{"op": "stop", "target": "fwd-00000001", "all": False}]
    terminal.wait(lambda lines: not any("localhost:3001 " in line for line in lines), what="its row goes")
    assert lines[0].startswith("autoforward")
    terminal.type("g")
    terminal.wait_for("> http://localhost:3000 ")
    terminal.type("G")
    terminal.wait_for("> http://localhost:3002 ")
    terminal.type("q")
    assert terminal.wait_ended() == 0


def test_url_is_shown_where_no_browser_can_open(watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch()
    terminal.wait_for("q quit")
    terminal.type("o")
    terminal.wait_for("not opened: there is no display here; c copies http://localhost:3000")


def test_rates_and_a_trend(watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch(columns=80)
    terminal.wait_for("q quit")
    looks = supervisor.looks
    eventually(lambda: supervisor.looks > looks, timeout_s=30)
    supervisor.rows = [{**row, "bytes": {"in": 10**6, "out": 5 * 10**9}} for row in supervisor.rows]
    lines = terminal.wait(lambda lines: any("█" in line for line in lines), what="a trend")
    assert re.search(r"active +\S+k? +\S+[MG] +█", lines[2])
    # What moved a moment ago goes on to be seen, the rate does not.
    lines = terminal.wait(lambda lines: re.search(r" 0 +0 +█ *$", lines[2]), what="it rests again")


def test_an_event_is_a_look_at_once_and_a_quiet_screen_is_not_written(watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch()
    terminal.wait_for("q quit")
    looks = supervisor.looks
    eventually(lambda: supervisor.looks >= looks + 2, timeout_s=30)
    written, looks = len(terminal.raw), supervisor.looks
    eventually(lambda: supervisor.looks >= looks + 3, timeout_s=30)
    assert len(terminal.raw) == written
    supervisor.rows = supervisor.rows[:2]
    supervisor.changed()
    terminal.wait_for("2 ports: 1 active, 1 waiting")
    assert len(terminal.raw) - written < 600  # the title and the row, not the screen


def test_escape_sequences_of_a_container_do_not_reach_the_screen(watch: Open, supervisor: FakeSupervisor) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\r\n"
    for row in supervisor.rows:
        row.update(
            containerName=evil, process=evil, label=evil, reason=evil, service=evil, url=f"http://localhost:1/{evil}"
        )
    terminal = watch(columns=140)
    terminal.wait_for("q quit")
    terminal.type("jco")
    terminal.wait_for("has no URL")
    assert b"owned\x07" not in terminal.raw
    assert b"\xc2\x9b" not in terminal.raw


@pytest.mark.parametrize(("columns", "lines"), [(60, 10), (140, 40), (20, 3)])
def test_screen_follows_the_size_of_the_terminal(
    columns: int, lines: int, watch: Open, supervisor: FakeSupervisor
) -> None:
    terminal = watch(columns=80, lines=24)
    terminal.wait_for("q quit")
    terminal.resize(columns, lines)
    if lines > 3:
        shown = terminal.wait(
            lambda shown: shown[0].startswith("autoforward  3 ports") and "q quit" in shown[lines - 1],
            what="the new size",
        )
        assert len(shown) == lines
        assert sum("q quit" in line for line in shown) == 1
    else:
        terminal.wait(lambda shown: len(shown) == lines and shown[0].startswith("> localhost:3000"), what="rows only")
    terminal.resize(80, 24)
    terminal.wait(lambda shown: len(shown) == 24 and "q quit" in shown[-1], what="the old size")
    terminal.type("q")
    assert terminal.wait_ended() == 0
    assert is_given_back(terminal)


def test_no_supervisor_and_back(watch: Open, home: Path) -> None:
    with FakeSupervisor(home, some_rows(2)):
        terminal = watch()
        terminal.wait_for("2 ports")
    terminal.wait_for("no supervisor")
    assert not any("localhost:" in line for line in terminal.lines)
    with FakeSupervisor(home, some_rows(3)):
        lines = terminal.wait_for("3 ports")
        assert not any("no supervisor" in line for line in lines)
        terminal.type("q")
        assert terminal.wait_ended() == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_signals_give_the_terminal_back(number: int, status: int, watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch()
    terminal.wait_for("q quit")
    terminal.process.send_signal(number)
    assert terminal.wait_ended() == status
    assert is_given_back(terminal)


def test_a_fault_of_ours_gives_the_terminal_back(watch: Open, supervisor: FakeSupervisor) -> None:
    # A row that no supervisor of ours would send.
    terminal = watch()
    terminal.wait_for("q quit")
    supervisor.rows = [{"id": "fwd-00000000", "ageSeconds": 1}]
    supervisor.changed()
    assert terminal.wait_ended() == 1
    assert is_given_back(terminal)
    terminal.wait_for("a fault in autoforward: KeyError")


def test_screen_returns_after_ctrl_z_and_fg(watch: Open, supervisor: FakeSupervisor) -> None:
    """Ctrl-Z, from a shell with job control, and fg."""
    terminal = watch("bash", "--norc", "-i", env={"PS1": "$ "})
    terminal.type(f"{script('autoforward')} list --watch\n")
    terminal.wait_for("q quit")
    terminal.type("\x1a")
    terminal.wait(lambda lines: any("Stopped" in line for line in lines), what="the shell is back")
    assert terminal.shows_cursor
    assert not terminal.is_other_screen
    terminal.type("fg\n")
    terminal.wait(lambda lines: "q quit" in lines[-1], what="the screen is back")
    assert terminal.is_other_screen
    terminal.type("q")
    terminal.wait(lambda _lines: terminal.shows_cursor and not terminal.is_other_screen)


@pytest.mark.parametrize(
    "env", [{"LC_ALL": "C"}, {"LANG": "en_US.ISO-8859-1"}, {"TERM": "linux"}, {"NO_COLOR": "1", "TERM": "vt100"}]
)
def test_terminal_with_fewer_abilities_still_shows_the_table(
    env: dict[str, str | None], watch: Open, supervisor: FakeSupervisor
) -> None:
    supervisor.rows[0]["containerName"] = "ein-sehr-langer-Name-für-einen-Container"
    terminal = watch(env=env, columns=60)
    lines = terminal.wait_for("q quit")
    if "NO_COLOR" in env:
        assert not re.search(rb"\x1b\[[0-9;]*[1-9]m", terminal.raw)
    else:
        assert all(line.isascii() for line in lines), lines
        assert b"\x1b[32m" in terminal.raw
    terminal.type("q")
    assert terminal.wait_ended() == 0


def test_screen_and_clipboard_work_in_tmux(home: Path, watch: Open, supervisor: FakeSupervisor) -> None:
    """As everywhere; and what is copied is in tmux's buffer, for tmux keeps OSC 52 of a program to itself."""
    tmux = shutil.which("tmux")
    if tmux is None:
        pytest.skip("no tmux")
    command = [tmux, "-f", os.devnull, "-S", str(home / "tmux")]
    terminal = watch(*command, "new-session", script("autoforward"), "list", "--watch", env={"TMUX": None})
    try:
        terminal.wait_for("q quit")
        terminal.type("j")
        terminal.wait_for("> localhost:3001")
        terminal.resize(140, 30)
        terminal.wait(lambda lines: any("> http://localhost:3001" in line for line in lines), what="the new size")
        terminal.type("c")
        terminal.wait_for("copied http://localhost:3001 (tmux)")
        shown = subprocess.run([*command, "show-buffer"], capture_output=True, check=True, text=True)
        assert shown.stdout == "http://localhost:3001"
        terminal.type("q")
        assert terminal.wait_ended() == 0
    finally:
        subprocess.run([*command, "kill-server"], capture_output=True, check=False)


def test_a_target_that_is_unknown_is_said_until_it_comes(watch: Open, supervisor: FakeSupervisor) -> None:
    came, supervisor.rows = supervisor.rows, []
    terminal = watch(script("autoforward"), "list", "--watch", "shopp", columns=140)
    terminal.wait_for("no session is called shopp, until now; `autoforward attach shopp` begins one")
    supervisor.rows = came
    supervisor.changed()
    terminal.wait_for("http://localhost:3001")
    supervisor.rows = []
    supervisor.changed()
    terminal.wait_for("nothing is forwarded yet")
    terminal.type("q")
    assert terminal.wait_ended() == 0


# Without a terminal.


@pytest.fixture
def lines_of(home: Path, supervisor: FakeSupervisor) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> subprocess.Popen[str]:
        argv = [script("autoforward"), "list", "--watch", *flags]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=command_env(home),
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_json_is_an_array_a_line_whenever_it_changes(lines_of: Any, supervisor: FakeSupervisor) -> None:
    process = lines_of("--json")
    assert process.stdout.readline().count('"fwd-') == 3
    looks = supervisor.looks
    supervisor.rows = [{**row, "ageSeconds": 9.0, "bytes": {"in": 7, "out": 7}} for row in supervisor.rows]
    eventually(lambda: supervisor.looks > looks, timeout_s=30)
    looks = supervisor.looks
    supervisor.changed()
    eventually(lambda: supervisor.looks > looks, timeout_s=30)
    supervisor.rows = supervisor.rows[1:]
    supervisor.changed()
    line = process.stdout.readline()
    assert line.count('"fwd-') == 2  # so nothing was printed for ages and traffic
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


def test_a_pipe_gets_tables(lines_of: Any, supervisor: FakeSupervisor) -> None:
    process = lines_of()
    header, *_rows = [process.stdout.readline() for _ in range(4)]
    assert header.startswith("ID ")
    supervisor.rows = []
    supervisor.changed()
    assert [process.stdout.readline() for _ in range(2)] == ["\n", "nothing is forwarded\n"]


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_target_that_is_unknown_is_a_warning(
    flags: tuple[str, ...], lines_of: Any, supervisor: FakeSupervisor
) -> None:
    supervisor.rows = []
    process = lines_of(*flags, "shopp")
    assert process.stdout.readline() == "autoforward: warning: no session is called shopp, until now\n"
    assert process.stdout.readline().startswith("autoforward: hint: `autoforward attach shopp` begins one")
    assert process.stdout.readline() == ("[]\n" if flags else "nothing is forwarded\n")


def test_a_locale_without_the_characters_is_no_failure(run: Runner, supervisor: FakeSupervisor) -> None:
    supervisor.rows[0]["label"] = "Büro 店"
    done = run("autoforward", "list", env={"PYTHONIOENCODING": "ascii"}, check=0)
    assert "B?ro ?" in done.stdout


def test_list_watch_ends_with_its_reader(lines_of: Any, supervisor: FakeSupervisor) -> None:
    process = lines_of("--json")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 0


def test_a_dumb_terminal_gets_tables(watch: Open, supervisor: FakeSupervisor) -> None:
    terminal = watch(env={"TERM": "dumb"})
    terminal.wait_for("localhost:3002")
    assert b"\x1b" not in terminal.raw
    terminal.type("\x03")
    assert terminal.wait_ended() == 0


def test_list_watch_imports_nothing_heavy(home: Path) -> None:
    """What takes long to import is not for `list`, nor for its screen."""
    code = (
        "import sys, autoforward.cli.main, autoforward.cli.commands.list_, autoforward.cli.terminal.live;"
        "print({'docker', 'rich', 'asyncio', 'requests', 'watchfiles', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"

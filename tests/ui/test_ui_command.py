"""`autoforward ui` as a process: its address, the browser that it opens, its port, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.conftest import Runner
from tests.support.containers import eventually
from tests.support.desktops import FakeBrowser
from tests.support.harness import free_port
from tests.support.observing import Command
from tests.support.page_client import ask, post

pytestmark = pytest.mark.local


def code_in(page: Path, address: str) -> str:
    found = set(re.findall(rf"{re.escape(address)}#([\w-]+)", page.read_text()))
    assert len(found) == 1
    return str(found.pop())


def command_lines() -> bytes:
    """Of all processes of this machine: what other users can read."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    return b"\n".join(lines)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBrowser:
    browser = FakeBrowser(tmp_path)
    monkeypatch.setattr("tests.conftest.NO_DESKTOP", {"AUTOFORWARD_BROWSER": str(browser.path), "CI": None})
    return browser


def test_the_command_prints_its_address_and_gives_the_browser_a_file_that_is_good_once(
    home: Path, desk: FakeBrowser
) -> None:
    """Another user who looked at the command lines often enough was first with the code."""
    with Command(home, "autoforward", "ui") as command:
        url = command.wait_line(lambda line: line.startswith("http://127.0.0.1:"))
        [opened] = desk.wait(1)
        address, _, token = url.partition("#")
        port = int(address.rstrip("/").rpartition(":")[2])
        page = Path(str(opened).removeprefix("file://"))
        about = page.lstat()
        assert page.parent == home
        assert (stat.S_IMODE(about.st_mode), about.st_uid, about.st_nlink) == (0o600, os.getuid(), 1)
        code = code_in(page, address)
        assert code != token and token not in page.read_text()
        said = json.dumps(desk.calls).encode() + command_lines()
        assert str(page).encode() in said
        assert token.encode() not in said and code.encode() not in said
        assert asyncio.run(ask(port, post("/api/enter", port, code, {"page": "one"}))).json["token"] == token
        eventually(lambda: not page.exists(), what="the end of the file")
        assert asyncio.run(ask(port, post("/api/enter", port, code, {"page": "two"}))).status == 401
        command.signal(signal.SIGINT)
        assert command.wait() == 0
    assert not (home / "supervisor.json").exists(), "nothing had to be started for it"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_that_was_not_used_goes_with_the_command(home: Path, desk: FakeBrowser, number: signal.Signals) -> None:
    with Command(home, "autoforward", "ui") as command:
        [opened] = desk.wait(1)
        page = Path(str(opened).removeprefix("file://"))
        assert page.exists()
        command.signal(number)
        assert command.wait() == 0
    assert not page.exists()


def test_no_file_stays_where_no_browser_opens(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "browser"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    for desktop, words in (
        ({"CI": "1"}, "Not opened: CI is set"),
        ({"CI": None, "AUTOFORWARD_BROWSER": str(failing)}, "ended with status 3"),
        ({"CI": None, "AUTOFORWARD_BROWSER": str(tmp_path / "none")}, "cannot run"),
    ):
        monkeypatch.setattr("tests.conftest.NO_DESKTOP", desktop)
        with Command(home, "autoforward", "ui") as command:
            command.wait_line(lambda line: words in line)  # noqa: B023
            eventually(lambda: not list(home.glob("*.html")), what="no file")
            command.signal(signal.SIGINT)
            assert command.wait() == 0


def test_a_port_that_is_asked_for(home: Path, run: Runner) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        done = run("autoforward", "ui", "--port", str(port), "--no-open", check=5)
    assert f"port {port}" in done.stderr and "--port" in done.stderr
    with Command(home, "autoforward", "ui", "--port", str(port), "--no-open") as command:
        command.wait_line(lambda line: line.startswith(f"http://127.0.0.1:{port}/#"))
        command.signal(signal.SIGTERM)
        assert command.wait() == 0
        assert not any("Not opened" in line for line in command.lines)
    assert not (home / "supervisor.json").exists()

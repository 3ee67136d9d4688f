"""`autoforward ui` as a process: its address, the browser that it opens, its port, its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.conftest import Runner
from tests.desktops import FakeBrowser
from tests.docker.observing import Command
from tests.local.harness import free_port
from tests.page_client import ask, post


def test_the_command_prints_its_address_and_gives_the_browser_one_that_is_good_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = FakeBrowser(tmp_path)
    monkeypatch.setattr("tests.conftest.NO_DESKTOP", {"AUTOFORWARD_BROWSER": str(browser.path), "CI": None})
    with Command(home, "autoforward", "ui") as command:
        url = command.wait_line(lambda line: line.startswith("http://127.0.0.1:"))
        [opened] = browser.wait(1)
        address, _, token = url.partition("#")
        port = int(address.rstrip("/").rpartition(":")[2])
        code = str(opened).removeprefix(f"{address}#")
        assert code not in (opened, token), "what is an argument others of this machine can read"
        assert asyncio.run(ask(port, post("/api/enter", port, code, {"page": "one"}))).json["token"] == token
        assert asyncio.run(ask(port, post("/api/enter", port, code, {"page": "two"}))).status == 401
        command.signal(signal.SIGINT)
        assert command.wait() == 0
    assert not (home / "supervisor.json").exists(), "nothing had to be started for it"


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

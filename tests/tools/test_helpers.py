"""What the fixtures do after a test, without an engine: end what it started, and check every event it wrote."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import check_events, command_env, end_everything_of, supervisor_of
from tests.images import server
from tests.support.containers import event_lines, eventually, is_alive, is_refused, run_id

pytestmark = pytest.mark.local


def test_detached_processes_of_a_test_are_ended(home: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=command_env(home),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        started = psutil.Process(child.pid).create_time()
        (home / "supervisor.json").write_text(f'{{"pid": {child.pid}, "pid_started": {started}}}')
        found = supervisor_of(home)
        assert found is not None
        assert found.pid == child.pid
        end_everything_of(home)
        assert child.wait(5) == -signal.SIGTERM
    assert supervisor_of(home) is None


def test_a_reused_pid_is_not_the_supervisor(home: Path) -> None:
    (home / "supervisor.json").write_text(f'{{"pid": {os.getpid()}, "pid_started": 1.0}}')
    assert supervisor_of(home) is None


def test_an_event_that_is_not_of_the_schema_is_found(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"event":"forwarded","port":3000}\n')
    with pytest.raises(AssertionError, match="required property"):
        check_events(tmp_path)


def test_empty_event_log_is_valid(tmp_path: Path) -> None:
    assert check_events(tmp_path) == 0


def test_event_lines_with_and_without_the_prefix() -> None:
    text = 'PORT_EVENT: {"port":1}\nForwarding ...\n{"port":2}\n'
    assert [event["port"] for event in event_lines(text)] == [1, 2]


def test_run_ids() -> None:
    assert is_alive(run_id())
    assert not is_alive(f"{os.getpid()}-12345")
    assert is_alive("helper"), "labels of somebody else are left alone"


def test_eventually_raises_the_last_problem() -> None:
    with pytest.raises(AssertionError, match="a unicorn"):
        eventually(lambda: False, timeout_s=0.05, what="a unicorn")


@pytest.fixture
def echo_port() -> Iterator[int]:
    """The image's server, run here: it is plain Python."""
    process = subprocess.Popen([sys.executable, server.__file__, "echo"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        yield int(process.stdout.readline().split()[2])
        process.terminate()


def test_the_images_server_runs_here_too(echo_port: int) -> None:
    payload = os.urandom(300_000)
    with socket.create_connection(("127.0.0.1", echo_port), timeout=10) as connection:

        def send() -> None:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert connection.makefile("rb").read() == payload
        sender.join()


def test_is_refused_is_about_refusal_only(echo_port: int) -> None:
    assert not is_refused("127.0.0.1", echo_port)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert is_refused("127.0.0.1", unused.getsockname()[1])

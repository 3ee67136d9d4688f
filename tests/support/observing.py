"""How the engine tests look at the product from outside: `list --json`, the event log, and commands that stay."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoforward.control.protocol import READ_BYTES, MessageDecoder, encode
from autoforward.control.start import connect_to_supervisor
from autoforward.core.errors import AutoforwardError
from autoforward.state.folder import StatePaths
from tests.conftest import Runner, command_env, script
from tests.support.containers import event_lines, eventually

_tried = itertools.count(random.SystemRandom().randrange(9000))

Row = dict[str, Any]


def free_port() -> int:
    """A number that nobody on the host listens on; below the ephemeral range, and another one at each call."""
    for step in _tried:
        number = 20_000 + step % 9000
        with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
            try:
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                four.bind(("127.0.0.1", number))
                six.bind(("::1", number))
            except OSError:
                continue
        return number
    raise AssertionError("no free port")


def new_folder() -> str:
    """The path of a workspace that nobody has."""
    return f"/home/someone/ws-{uuid.uuid4().hex[:8]}"


def dev_container_labels(folder: str, **configuration: object) -> dict[str, str]:
    """Labels of a dev container of that folder; `configuration` is its devcontainer.json."""
    return {"devcontainer.local_folder": folder, "devcontainer.metadata": json.dumps([configuration])}


def _answer(run: Runner, request: Row) -> Row | None:
    """What the supervisor of that home answers; None when none does, or it ends meanwhile."""
    sock = connect_to_supervisor(StatePaths(run.home))
    if sock is None:
        return None
    with sock, contextlib.suppress(ConnectionError):
        sock.settimeout(60)
        sock.sendall(encode(request))
        decoder = MessageDecoder()
        while data := sock.recv(READ_BYTES):
            decoder.feed(data)
            try:
                if (result := decoder.next_result()) is not None:
                    return result
            except AutoforwardError as error:
                raise AssertionError(f"{request}: {error}") from error
    return None


def rows(run: Runner, target: str | None = None) -> list[Row]:
    """What `autoforward list --json` prints (test_fixtures.py): asked as the command asks, 20 times as fast.

    The command itself where it does more than ask: it finds the session of a folder or project, says which target is unknown,
    and starts a supervisor that restores sessions.
    """
    named = () if target is None else (target,)
    answer = None if target is not None and "/" in target else _answer(run, {"op": "list", "target": target})
    if answer is None or (named and not answer["rows"]):
        answer = {"rows": json.loads(run("autoforward", "list", "--json", *named, check=0).stdout)}
    return list(answer["rows"])


def status_json(run: Runner) -> Row:
    """What `autoforward status --json` prints, likewise."""
    answer = _answer(run, {"op": "status"})
    if answer is None:
        answer = json.loads(run("autoforward", "status", "--json", check=0).stdout)
    shown = {key: value for key, value in answer.items() if key not in ("type", "warning")}
    return {"running": "pid" in shown, **shown}


def row_of(
    run: Runner, container_port: int, target: str | None = None, *, status: str | None = None, timeout_s: float = 20.0
) -> Row:
    """The one row of that port, as soon as there is one (with that status)."""

    def found() -> Row:
        listed = [row for row in rows(run, target) if row["port"] == container_port]
        assert len(listed) == 1, f"rows of {container_port}: {listed}"
        assert status in (None, listed[0]["status"]), f"{listed[0]['status']}, not {status}: {listed[0]['reason']}"
        return listed[0]

    return eventually(found, timeout_s=timeout_s, what=f"a row of port {container_port}")


def logged(home: Path, container_port: int | None = None, *, since: int = 0) -> list[Row]:
    """What events.jsonl holds, of all ports or of one."""
    path = home / "events.jsonl"
    found = event_lines(path.read_text()) if path.exists() else iter(())
    return [
        event for event in found if event["seq"] > since and (container_port is None or event["port"] == container_port)
    ]


def names(events: list[Row]) -> list[str]:
    return [event["event"] for event in events]


def steps(events: list[Row]) -> list[str]:
    """Their names without `updated`: whose a port is may be known with `forwarded`, or a moment later."""
    return [name for name in names(events) if name != "updated"]


def wait_event(home: Path, name: str, container_port: int | None, *, since: int = 0, timeout_s: float = 20.0) -> Row:
    """The first such event after `since`, as soon as it is written."""

    def found() -> Row | None:
        return next((event for event in logged(home, container_port, since=since) if event["event"] == name), None)

    event = eventually(found, timeout_s=timeout_s, what=f"{name} of port {container_port}")
    assert event is not None
    return event


def wait_names(
    home: Path, container_port: int | None, expected: list[str], *, of: Callable[[list[Row]], list[str]] = names
) -> None:
    """What is logged of that port is this, as soon as it is written: rows and answers are there before."""

    def are_logged() -> bool:
        found = of(logged(home, container_port))
        assert found == expected
        return True

    eventually(are_logged, what=f"{expected} of port {container_port}")


def wait_steps(home: Path, container_port: int | None, expected: list[str]) -> None:
    """As `wait_names`, without `updated`."""
    wait_names(home, container_port, expected, of=steps)


def registry(home: Path) -> Row:
    """What registry.json holds; nothing when there is none yet."""
    path = home / "registry.json"
    document: Row = json.loads(path.read_text()) if path.exists() else {"entries": [], "sessions": []}
    return document


IMPATIENT = """
from autoforward.dataplane.mux import exec_mux
from autoforward.lanes import shell_watcher
exec_mux.SILENCE_LIMIT_S, exec_mux.PING_INTERVAL_S, exec_mux.PAUSE_ANSWER_TIMEOUT_S = 1.0, 0.3, 1.0
shell_watcher.PING_INTERVAL_S, shell_watcher.PONG_TIMEOUT_S, shell_watcher.PAUSE_ANSWER_TIMEOUT_S = 0.3, 1.0, 1.0
"""
"""For `begin_supervisor`: what says nothing is given up within a second, as long as its container is not paused."""


def begin_supervisor(home: Path, patches: str) -> None:
    """Start the supervisor of that home with this Python code run first; on return it serves."""
    reads, ready = os.pipe()
    program = f"{patches}\nfrom autoforward.supervisor.__main__ import main\nmain()\n"
    command = [sys.executable, "-c", program, "--ready-fd", str(ready)]
    subprocess.run(command, env=command_env(home), pass_fds=[ready], check=True, timeout=20)
    os.close(ready)
    with os.fdopen(reads, "rb") as said:
        assert said.read() == b"ready"


class Command:
    """A command that stays: its lines of stdout and stderr as they come. A context manager, which ends it."""

    def __init__(self, home: Path, *argv: str) -> None:
        self._process = subprocess.Popen(
            [script(argv[0]), *argv[1:]],
            env=command_env(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.argv = argv
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_line(self, wanted: Callable[[str], object], *, timeout_s: float = 30.0) -> str:
        """The first line that is wanted, now or later; an AssertionError with all lines when there is none."""
        with self._changed:
            self._changed.wait_for(lambda: any(map(wanted, self.lines)), timeout_s)
            found = next((line for line in self.lines if wanted(line)), None)
        assert found is not None, f"{self.argv}: not among {self.lines}"
        return found

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, *, timeout_s: float = 30.0) -> int:
        """Exit status; afterwards `lines` is complete."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def events(self) -> list[Row]:
        with self._changed:
            return list(event_lines("\n".join(line for line in self.lines if line.startswith("PORT_EVENT: "))))


def ask(
    client: socket.socket, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", *, ends: bytes = b"hello\n"
) -> bytes:
    """One request on an open connection, and its answer up to `ends`."""
    client.settimeout(20)
    client.sendall(request)
    received = b""
    while not received.endswith(ends):
        piece = client.recv(65536)
        assert piece, f"the connection ended after {received!r}"
        received += piece
    return received

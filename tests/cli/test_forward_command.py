"""`autoforward forward`: what it says and when, how it ends, and that nothing of it stays."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Server, eventually, fetch, is_refused
from tests.support.observing import (
    Command,
    ask,
    free_port,
    registry,
    row_of,
    rows,
    wait_event,
    wait_steps,
)

pytestmark = pytest.mark.docker


def _forward(home: Path, server: Server, host_port: int) -> Command:
    return Command(home, "autoforward", "forward", server.container.name, f"{host_port}:{server.port}")


def _said(server: Server, host_port: int) -> str:
    return f"Forwarding 127.0.0.1:{host_port} -> {server.container.name}:{server.port}"


def _answer(lines: Sequence[str]) -> list[str]:
    """Without the line that comes first on a busy machine, and says what is being waited for."""
    return [line for line in lines if not line.startswith("looking into ")]


def test_forward_binds_before_it_prints(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server, other = app.start_server(port=free_port()), app.start_server(port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        line = command.wait_line(lambda line: "orwarding" in line)
        # No second try here: what is said is so.
        assert fetch(f"http://127.0.0.1:{host_port}/") == "hello\n"
        assert fetch(f"http://[::1]:{host_port}/") == "hello\n"
        assert line == _said(server, host_port)
        assert [(row["port"], row["localPort"], row["source"]) for row in rows(run)] == [
            (server.port, host_port, "manual")
        ], f"only what was named, not {other.port}"
        command.signal(signal.SIGINT)
        assert command.wait() == 0
    assert is_refused("127.0.0.1", host_port)
    assert is_refused("::1", host_port)
    assert rows(run) == []
    wait_steps(home, server.port, ["forwarded", "unforwarded"])
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_answer_on_its_way_is_waited_for(container: ContainerFactory, home: Path, number: int) -> None:
    server = container().start_server("late-answer", port=free_port(), delay_s=2.5)
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            client.sendall(b"x" * 1000)
            client.shutdown(socket.SHUT_WR)
            # The server has it all when it has read the end; its answer comes later than the signal.
            wait_for_bytes(home, host_port, 1000)
            command.signal(number)
            command.wait_line(lambda line: line.startswith("Ending"))
            assert is_refused_soon(host_port)
            answer = client.makefile("rb").read()
        assert answer.decode() == f"got 1000 {hashlib.sha256(b'x' * 1000).hexdigest()}\n"
        assert command.wait() == 0


def is_refused_soon(host_port: int) -> bool:
    return eventually(lambda: is_refused("127.0.0.1", host_port), timeout_s=10)


def wait_for_bytes(home: Path, host_port: int, count: int) -> None:
    """Until so many bytes of a client have gone on towards the server."""
    from autoforward.cli.console import supervisor_client
    from autoforward.state.folder import StatePaths

    def arrived() -> bool:
        with supervisor_client.call({"op": "list", "target": None}, StatePaths(home), start=False) as call:  # type: ignore[union-attr]
            list(call)
            assert call.result is not None
            return any(row["localPort"] == host_port and row["bytes"]["in"] >= count for row in call.result["rows"])

    eventually(arrived, timeout_s=20, what=f"{count} bytes on {host_port}")


def test_second_interrupt_cuts_at_once(container: ContainerFactory, home: Path) -> None:
    server = container().start_server("ignores-eof", port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            client.sendall(b"something")
            wait_for_bytes(home, host_port, 9)
            command.signal(signal.SIGINT)
            command.wait_line(lambda line: line.startswith("Ending"))
            before_s = time.monotonic()
            command.signal(signal.SIGINT)
            assert command.wait() == 0
            # Five seconds are what draining may take.
            assert time.monotonic() - before_s < 4
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    assert is_refused_soon(host_port)


def test_connection_that_does_not_drain_in_time_is_cut(container: ContainerFactory, home: Path) -> None:
    server = container().start_server("ignores-eof", port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            client.sendall(b"something")
            wait_for_bytes(home, host_port, 9)
            command.signal(signal.SIGINT)
            assert command.wait(timeout_s=20) == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    eventually(lambda: server.container.processes(of_tests=False) == [], timeout_s=10)


@pytest.mark.parametrize("flags", [[], ["-d"]], ids=["foreground", "detached"])
def test_taken_port_is_exit_5(container: ContainerFactory, run: Runner, home: Path, flags: list[str]) -> None:
    server = container().start_server(port=free_port())
    host_port = free_port()
    with socket.create_server(("127.0.0.1", host_port)):
        done = run("autoforward", "forward", *flags, server.container.name, f"{host_port}:{server.port}")
    assert done.returncode == 5
    assert "Forwarding" not in done.stdout + done.stderr
    assert _answer(done.stderr.splitlines())[0].startswith(f"autoforward: error: host port {host_port} "), done.stderr
    assert "in use" in done.stderr
    assert rows(run) == [], "a command that failed leaves nothing behind"
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_container_removed_meanwhile_is_exit_4(container: ContainerFactory, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        app.remove()
        assert command.wait() == 4
        said = _answer(command.lines)[1:]
    assert len(said) == 1, said
    assert said[0].startswith("autoforward: error: ")
    assert app.name in said[0]
    assert is_refused("127.0.0.1", host_port)


def test_detached_forward_is_handed_over_and_the_command_returns(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    server = container().start_server(port=free_port())
    host_port = free_port()
    done = run("autoforward", "forward", "-d", server.container.name, f"{host_port}:{server.port}", check=0)
    assert fetch(f"http://127.0.0.1:{host_port}/") == "hello\n"
    supervisor = supervisor_of(home)
    assert supervisor is not None
    row = row_of(run, server.port)
    lines = _answer(done.stderr.splitlines())
    assert lines[0] == _said(server, host_port)
    assert re.search(rf"\b{row['id']}\b.*\b{supervisor.pid}\b", lines[1]), lines
    # It is stored, as a session of that port alone.
    [session] = registry(home)["sessions"]
    assert not session["attached"]
    run("autoforward", "stop", row["id"], check=0)
    assert is_refused("127.0.0.1", host_port)
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_detached_forward_is_printed_as_json(container: ContainerFactory, run: Runner) -> None:
    server = container().start_server(port=free_port())
    done = run("autoforward", "forward", "-d", "--json", server.container.name, str(server.port), check=0)
    [row] = json.loads(done.stdout)
    assert fetch(f"http://127.0.0.1:{row['localPort']}/") == "hello\n"


def test_killed_command_takes_its_forward_along(container: ContainerFactory, run: Runner, home: Path) -> None:
    server = container().start_server(port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            ask(client)
            command.signal(signal.SIGKILL)
            assert command.wait() == -signal.SIGKILL
            assert is_refused_soon(host_port)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    wait_event(home, "unforwarded", server.port)
    assert rows(run) == []


def test_server_that_is_not_up_is_waited_for(container: ContainerFactory, home: Path) -> None:
    app = container()
    container_port, host_port = free_port(), free_port()
    with Command(home, "autoforward", "forward", app.name, f"{host_port}:{container_port}") as command:
        line = command.wait_line(lambda line: f"127.0.0.1:{host_port}" in line)
        assert line.startswith("Waiting ")
        assert is_refused("127.0.0.1", host_port)
        app.start_server(port=container_port)
        wait_event(home, "forwarded", container_port)
        assert fetch(f"http://127.0.0.1:{host_port}/") == "hello\n"
        # And the terminal says so too.
        command.wait_line(f"Forwarding 127.0.0.1:{host_port} -> {app.name}:{container_port}".__eq__)


def test_forward_without_a_pin_says_why_its_number_differs(container: ContainerFactory, home: Path) -> None:
    server = container().start_server(port=free_port())
    with (
        socket.create_server(("127.0.0.1", server.port)),
        Command(home, "autoforward", "forward", server.container.name, str(server.port)) as command,
    ):
        line = command.wait_line(lambda line: "orwarding" in line)
        match = re.fullmatch(r"Forwarding 127\.0\.0\.1:(\d+) -> (\S+):(\d+) \((.+)\)", line)
        assert match is not None, line
        assert int(match[1]) != server.port
        assert f"host port {server.port} is in use" in match[4]
        assert fetch(f"http://127.0.0.1:{match[1]}/") == "hello\n"


def test_forward_beside_an_attached_session_ends_with_its_command(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    """A pinned number of an attached container lives with its command, or until it is stopped; what was detected stays."""
    server = container().start_server(port=free_port())
    run("autoforward", "attach", server.container.name, check=0)
    detected = row_of(run, server.port, status="active")
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        assert fetch(f"http://127.0.0.1:{host_port}/") == fetch(detected["url"]) == "hello\n"
        assert {row["localPort"]: row["source"] for row in rows(run)} == {server.port: "detected", host_port: "manual"}
        ambiguous = run("autoforward", "open", str(server.port), check=2)
        assert f"port {server.port} matches 2 forwards" in ambiguous.stderr
        command.signal(signal.SIGINT)
        assert command.wait() == 0
    row = row_of(run, server.port, status="active")
    assert (row["id"], row["localPort"]) == (detected["id"], detected["localPort"])
    assert fetch(row["url"]) == "hello\n"
    assert is_refused("127.0.0.1", host_port)
    run("autoforward", "forward", "-d", server.container.name, f"{host_port}:{server.port}", check=0)
    run("autoforward", "restart", check=0)
    assert fetch(f"http://127.0.0.1:{host_port}/") == fetch(detected["url"]) == "hello\n"
    by_number = {row["localPort"]: row["id"] for row in rows(run)}
    assert by_number[server.port] == detected["id"]
    run("autoforward", "attach", server.container.name, f"{host_port}:{server.port}", check=0)
    assert {row["localPort"]: row["id"] for row in rows(run)} == by_number, "the same SPEC is the same forward"
    run("autoforward", "stop", by_number[host_port], check=0)
    assert is_refused("127.0.0.1", host_port)
    assert {row["localPort"]: row["id"] for row in rows(run)} == {server.port: detected["id"]}


def test_forward_stopped_by_another_command_ends_its_own(container: ContainerFactory, run: Runner, home: Path) -> None:
    server = container().start_server(port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as command:
        command.wait_line(_said(server, host_port).__eq__)
        run("autoforward", "stop", row_of(run, server.port)["id"], check=0)
        assert is_refused("127.0.0.1", host_port)
        assert command.wait() == 0
        assert _answer(command.lines)[1:] == ["stopped by the user"]
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_two_commands_for_one_port(container: ContainerFactory, run: Runner, home: Path) -> None:
    """What another one still wants goes on when the first ends, and no connection is cut."""
    server = container().start_server(port=free_port())
    host_port = free_port()
    with _forward(home, server, host_port) as first, _forward(home, server, host_port) as second:
        for command in (first, second):
            command.wait_line(_said(server, host_port).__eq__)
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            ask(client)
            first.signal(signal.SIGINT)
            assert first.wait() == 0
            ask(client)
            assert fetch(f"http://127.0.0.1:{host_port}/") == "hello\n"
        second.signal(signal.SIGINT)
        assert second.wait() == 0
    assert is_refused("127.0.0.1", host_port)

"""The supervisor is killed, at rest and at any moment. (Two starts at once: test_supervisor_process.py.)"""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script, supervisor_of
from tests.nightly import times
from tests.support import soak_server
from tests.support.conformance import relays_in
from tests.support.containers import Server, eventually, is_refused
from tests.support.fault_report import Fault
from tests.support.observing import free_port, logged, registry, row_of, rows, steps, wait_event
from tests.support.supervisors import kill_9, the_supervisor
from tests.support.traffic import Traffic, ask_once

pytestmark = pytest.mark.faults

NewFault = Callable[[str], Fault]
ROUNDS = times(2, 5)
SEED = 20260105
DOWNLOAD_BYTES = 64 * 1024 * 1024


@pytest.mark.timeout(180)
def test_kill_9_under_traffic(container: ContainerFactory, run: Runner, home: Path, fault: NewFault) -> None:
    apps = [container() for _ in range(2)]
    servers = [app.start_server(port=free_port(), text=f"{app.name} {index}") for app in apps for index in range(2)]
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    before = {row["port"]: (row["localPort"], row["id"]) for row in rows(run)}
    assert len(before) == 4
    row = fault("supervisor is killed (-9)")
    row.goal_s, row.since = 1.0, "after the next command begins"
    host_port = before[servers[0].port][0]
    for _ in range(ROUNDS):
        with Traffic(host_port) as traffic:
            traffic.wait_answer(after_s=0)
            killed_s = time.time()
            kill_9(the_supervisor(home))
            eventually(lambda: is_refused("127.0.0.1", host_port), what="nobody listens any more")
            asked_s = time.time()
            run("autoforward", "list", check=0, real=True)
            row.recovered(traffic.wait_answer(after_s=asked_s).ended_s - asked_s)
        outcomes = traffic.outcomes(since_s=killed_s)
        assert set(outcomes) <= {"answered", "reset", "refused", "cut"}, outcomes
        row.note_traffic(outcomes)
        assert {one["port"]: (one["localPort"], one["id"]) for one in rows(run)} == before
        for server in servers:
            assert ask_once(before[server.port][0]) == ("answered", _text(servers, server))
    row.note("refused until the next command, then the same host ports")
    for app in apps:
        eventually(lambda app=app: len(app.processes(of_tests=False)) == 1, timeout_s=10, what="one agent a container")
    assert row.median_s < 10


def _text(servers: list[Server], server: Server) -> str:
    return f"{server.container.name} {servers.index(server) % 2}"


@pytest.mark.timeout(180)
def test_kill_9_at_any_moment_of_an_attach(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault
) -> None:
    """Whatever was half done, the next attach does the whole of it, on the same number."""
    app = container()
    server = app.start_server(port=free_port(), text="whole")
    choose = random.Random(SEED)
    row = fault("supervisor is killed (-9) during attach")
    numbers = set()
    for _ in range(times(4, 8)):
        argv = [script("autoforward"), "attach", app.name]
        with subprocess.Popen(
            argv, env=command_env(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as command:
            process = eventually(lambda: supervisor_of(home), timeout_s=30)
            threading.Event().wait(choose.uniform(0, 0.25))
            kill_9(process)
            _, words = command.communicate(timeout=60)
        assert command.returncode in (0, 1), words
        assert "Traceback" not in words
        row.note(f"attach: exit {command.returncode}")
        run("autoforward", "attach", app.name, check=0)
        after = row_of(run, server.port, status="active")
        numbers.add((after["localPort"], after["id"]))
        assert ask_once(after["localPort"]) == ("answered", "whole")
        run("autoforward", "detach", app.name, check=0)
        kill_9(the_supervisor(home))
    assert len(numbers) == 1, numbers
    eventually(lambda: app.processes(of_tests=False) == [], timeout_s=10, what="nothing of ours is left")
    seqs = [event["seq"] for event in logged(home)]
    assert seqs == sorted(set(seqs)), "events are numbered on, whoever was killed"
    [entry] = registry(home)["entries"]
    assert entry["state"] in ("bound", "reserved")


@pytest.mark.parametrize("who", ["detach", "the next supervisor"])
def test_ends_that_a_killed_supervisor_could_not_tell(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault, who: str
) -> None:
    app = container()
    server = app.start_server(port=free_port(), text="here")
    run("autoforward", "attach", app.name, str(waiting := free_port()), check=0)
    up = {port: row_of(run, port)["id"] for port in (server.port, waiting)}
    row = fault("supervisor is killed (-9), who follows the events")
    said = (home / "supervisor.json").read_text()
    for name, port in (("forwarded", server.port), ("waiting", waiting)):
        wait_event(home, name, port)
    kill_9(the_supervisor(home))
    since = logged(home)[-1]["seq"]
    if who == "detach":
        assert "Ended 1 session" in run("autoforward", "detach", app.name, check=0).stderr
        assert (home / "supervisor.json").read_text() == said, "nothing was started for it"
    else:
        row_of(run, server.port, status="active")
    ends = logged(home, since=since)
    told = {(event["event"], event["port"], event["id"], event["status"]) for event in ends[:3]}
    assert told == {("unforwarded", port, up[port], None) for port in up} | {("detached", None, None, None)}
    assert ends[2]["event"] == "detached", "after the ends of its forwards"
    assert {event["reason"] for event in ends[:3]} == {"the supervisor was killed"}
    assert [event["seq"] for event in ends] == list(range(since + 1, since + 1 + len(ends)))
    if who == "detach":
        assert len(ends) == 3
        assert rows(run) == []
    else:
        assert steps(ends[3:])[0] == "attached"
        assert {(event["event"], event["id"]) for event in ends[4:] if event["id"]} >= {("forwarded", up[server.port])}
    row.note(f"told by {who}")


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("always_direct")
def test_half_a_download_does_not_look_whole(
    container: ContainerFactory, run: Runner, home: Path, fault: NewFault
) -> None:
    """The kernel closes what a killed process held: on every lane the client must see a reset, not the end of an answer."""
    source, port = Path(soak_server.__file__).read_text(), free_port()
    app = container(command=["python3", "-c", source, "whole", str(port)])
    row = fault("supervisor is killed (-9) in the middle of a download")
    for flags in (["--lane", "agent", "--no-direct"], ["--lane", "agent"], ["--lane", "socat"]):
        run("autoforward", "attach", app.name, *flags, check=0)
        host_port = row_of(run, port, status="active")["localPort"]
        with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
            client.sendall(f"get 7 {DOWNLOAD_BYTES}\n".encode())
            received = bytearray()
            while len(received) < DOWNLOAD_BYTES // 4:  # enough to be moved to the direct path, where there is one
                received += client.recv(1 << 18)
            kill_9(the_supervisor(home))
            with pytest.raises(ConnectionResetError):
                while piece := client.recv(1 << 18):
                    received += piece
        assert soak_server.content(7, DOWNLOAD_BYTES).startswith(received)
        assert len(received) < DOWNLOAD_BYTES
        row.note("reset")


@pytest.mark.usefixtures("always_direct")
def test_kill_9_with_connections_open(container: ContainerFactory, run: Runner, home: Path, fault: NewFault) -> None:
    """They end with it: its clients are told, its relays in the container end, on a lane with processes too."""
    row = fault("supervisor is killed (-9), connections open")
    for lane in ("agent", "socat"):
        app = container()
        server = app.start_server("echo", port=free_port())
        run("autoforward", "attach", app.name, "--lane", lane, check=0)
        host_port = row_of(run, server.port, status="active")["localPort"]
        clients = [socket.create_connection(("127.0.0.1", host_port), timeout=20) for _ in range(5)]
        for client in clients:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        kill_9(the_supervisor(home))
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()
        row.note("reset")
        asked_s = time.time()
        after = row_of(run, server.port, status="active")
        row.recovered(time.time() - asked_s)
        assert after["localPort"] == host_port
        eventually(lambda app=app: relays_in(app) == [], timeout_s=20, what="its relays have ended")
        run("autoforward", "detach", app.name, check=0)
        eventually(lambda app=app: app.processes(of_tests=False) == [], timeout_s=10)

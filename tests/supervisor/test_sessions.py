"""Sessions on a real engine: declared ports, two workspaces, attach again, stop and detach, status and logs."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import eventually, fetch, is_refused
from tests.support.observing import (
    ask,
    dev_container_labels,
    free_port,
    logged,
    names,
    new_folder,
    registry,
    row_of,
    rows,
    steps,
    wait_event,
    wait_steps,
)

pytestmark = pytest.mark.docker

# -- declared ports ------------------------------------------------------------------------------


def test_declared_port_refuses_until_its_server_is_up_and_again_when_it_stops(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    port = free_port()
    app = container(labels=dev_container_labels(new_folder(), forwardPorts=[port]))
    said = run("autoforward", "attach", app.name, check=0).stderr
    assert f"Waiting    127.0.0.1:{port} -> {app.name}:{port} (refused until its server is up)" in said
    row = row_of(run, port, status="waiting")
    assert (row["localPort"], row["source"], row["autoForwarded"]) == (port, "declared", False)
    assert is_refused("127.0.0.1", port)
    assert is_refused("::1", port)

    since = 0
    for text in ("first", "second"):
        server = app.start_server(port=port, text=text)
        since = wait_event(home, "forwarded", port, since=since)["seq"]
        assert fetch(f"http://localhost:{port}/") == f"{text}\n"
        assert row_of(run, port, status="active")
        server.stop()
        since = wait_event(home, "waiting", port, since=since)["seq"]
        assert is_refused("127.0.0.1", port)
        assert is_refused("::1", port)
        assert row_of(run, port)["localPort"] == port
    wait_steps(home, port, ["waiting", "forwarded", "waiting", "forwarded", "waiting"])
    assert {(event["id"], event["localPort"]) for event in logged(home, port)} == {(row["id"], port)}


def test_number_of_a_waiting_port_is_reserved(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container(labels=dev_container_labels(new_folder(), forwardPorts=[port]))
    run("autoforward", "attach", app.name, check=0)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))


ANNOUNCES = """
import socket, sys
control, *ports = map(int, sys.argv[1:])
client, _ = socket.create_server(("127.0.0.1", control)).accept()
for port in ports:
    client.recv(1)
    with socket.create_server(("127.0.0.1", port)) as data:
        client.sendall(b"%d\\n" % port)
        served, _ = data.accept()
        with served:
            served.sendall(b"data of %d" % port)
"""
"""As FTP's EPSV: it opens a port, says its number, and the client dials that at once."""


def test_port_that_is_announced_and_dialled_at_once_is_reached(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    """Seen: refused 10 of 10 first times, and to be had after 7 to 109 ms."""
    control, *ports = (free_port() for _ in range(11))
    settings = {"autoforward": {"waitForServer": 5}}
    labels = dev_container_labels(new_folder(), forwardPorts=[control, *ports], customizations=settings)
    app = container(labels=labels)
    run("autoforward", "attach", app.name, check=0)
    app.raw.exec_run(["python3", "-c", ANNOUNCES, *map(str, (control, *ports))], detach=True)
    with socket.create_connection(("127.0.0.1", control), timeout=20) as session, session.makefile("rb") as said:
        for port in ports:
            session.sendall(b"E")
            announced = int(said.readline())
            with socket.create_connection(("127.0.0.1", announced), timeout=20) as data, data.makefile("rb") as answer:
                assert answer.read() == b"data of %d" % port
    assert {row["connections"]["refused"] for row in rows(run)} == {0}
    for port in ports:
        wait_event(home, "forwarded", port)
        assert steps(logged(home, port))[:2] == ["waiting", "forwarded"]


# -- two workspaces with the same port -----------------------------------------------------------


def test_two_workspaces_on_one_number(container: ContainerFactory, run: Runner, home: Path) -> None:
    folders = [new_folder(), new_folder()]
    apps = [container(labels=dev_container_labels(folder)) for folder in folders]
    port = apps[0].start_server(port=free_port(), text="hello from 0").port
    apps[1].start_server(port=port, text="hello from 1")
    first = run("autoforward", "attach", apps[0].name, check=0).stderr
    second = run("autoforward", "attach", apps[1].name, check=0).stderr

    by_folder = {row["workspaceFolder"]: row for row in rows(run)}
    assert set(by_folder) == set(folders)
    for number, folder in enumerate(folders):
        assert fetch(by_folder[folder]["url"]) == f"hello from {number}\n"
    one, two = (by_folder[folder] for folder in folders)
    assert (one["localPort"], one["remapped"], one["reason"]) == (port, False, None)
    assert two["localPort"] != port
    assert two["remapped"]
    assert f"host port {port} is in use" in two["reason"]
    assert one["id"] in two["reason"], "who has it is known here"
    [event] = eventually(lambda: [event for event in logged(home, port) if event["containerId"] == apps[1].id])
    assert (event["event"], event["remapped"], event["localPort"], event["reason"]) == (
        "forwarded",
        True,
        two["localPort"],
        two["reason"],
    )
    assert first.splitlines() == [f"Forwarding 127.0.0.1:{port} -> {apps[0].name}:{port}"]
    assert second.splitlines() == [
        f"Forwarding 127.0.0.1:{two['localPort']} -> {apps[1].name}:{port} ({two['reason']})"
    ]


def test_remapped_number_is_kept_while_its_own_is_taken_and_no_longer(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    apps = [container(labels=dev_container_labels(new_folder())) for _ in range(2)]
    port = apps[0].start_server(port=free_port(), text="0").port
    apps[1].start_server(port=port, text="1")
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, apps[1].name)
    run("autoforward", "detach", apps[1].name, check=0)
    run("autoforward", "attach", apps[1].name, check=0)
    after = row_of(run, port, apps[1].name)
    assert (after["localPort"], after["id"]) == (before["localPort"], before["id"])
    assert after["remapped"]
    assert after["reason"] == before["reason"]
    for app in apps:
        run("autoforward", "detach", app.name, check=0)
    assert rows(run) == []
    eventually(lambda: {entry["state"] for entry in registry(home)["entries"]} == {"reserved"}, what="reserved")

    # The number that it asked for is free, and neither has settled: a callback, a bookmark or a test asks for that one.
    run("autoforward", "attach", apps[1].name, check=0)
    alone = row_of(run, port, apps[1].name)
    assert (alone["localPort"], alone["id"]) == (port, before["id"])
    assert (alone["remapped"], alone["reason"]) == (False, None)
    assert fetch(alone["url"]) == "1\n"


# -- attach again --------------------------------------------------------------------------------


def test_attach_again_replaces_options_adds_ports_and_cuts_nothing(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    kept, dropped = app.start_server(port=free_port()), app.start_server(port=free_port())
    manual, wanted = [free_port() for _ in range(2)], [free_port() for _ in range(2)]
    run("autoforward", "attach", app.name, f"{manual[0]}:{wanted[0]}", check=0)
    before = row_of(run, kept.port, status="active")
    with socket.create_connection(("127.0.0.1", before["localPort"]), timeout=20) as client:
        ask(client)
        run("autoforward", "attach", app.name, f"{manual[1]}:{wanted[1]}", "--exclude", str(dropped.port), check=0)
        ask(client)
        listed = {row["port"]: row for row in rows(run)}
        assert listed[dropped.port]["status"] == "ignored"
        assert listed[dropped.port]["localPort"] is None
        assert [listed[port]["localPort"] for port in wanted] == manual
        assert (listed[kept.port]["id"], listed[kept.port]["localPort"]) == (before["id"], before["localPort"])
        run("autoforward", "attach", app.name, check=0)
        assert row_of(run, dropped.port, status="active"), "an option that is not repeated is in force no more"
        ask(client)
    wait_steps(home, kept.port, ["forwarded"])
    assert len(registry(home)["sessions"]) == 1


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_another_poll_interval_cuts_nothing(container: ContainerFactory, run: Runner, home: Path, lane: str) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
        ask(client)
        run("autoforward", "attach", app.name, "--lane", lane, "--poll-interval", "0.2", check=0)
        ask(client)
    wait_steps(home, server.port, ["forwarded"])


def test_another_lane_cuts_nothing(container: ContainerFactory, run: Runner, home: Path) -> None:
    """What carries a connection stays until the connection has ended, and not longer."""
    app = container()
    server = app.start_server(port=free_port())
    clients = []
    for lane in ("agent", "socat", "agent"):
        run("autoforward", "attach", app.name, "--lane", lane, check=0)
        row = row_of(run, server.port, status="active")
        assert row["lane"] == lane
        clients.append(socket.create_connection(("127.0.0.1", row["localPort"]), timeout=20))
        for client in clients:
            ask(client)
    wait_steps(home, server.port, ["forwarded"])
    for client in clients:
        client.close()
    [left] = eventually(lambda: (found := app.processes(of_tests=False))[1:] == [] and found, timeout_s=20)
    assert left.name.startswith("agent-")


def test_no_auto_forwards_what_is_declared_only(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container(labels=dev_container_labels(new_folder(), forwardPorts=[port]))
    app.start_server(port=port)
    app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--no-auto", check=0)
    assert [(row["port"], row["status"]) for row in rows(run)] == [(port, "active")]


# -- ends ----------------------------------------------------------------------------------------


def test_stop_by_id_by_target_and_detach(container: ContainerFactory, run: Runner, home: Path) -> None:
    apps = [container(), container()]
    servers = [app.start_server(port=free_port()) for app in (apps[0], apps[0], apps[1])]
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    assert len(rows(run)) == 3
    first, second, third = (row_of(run, server.port) for server in servers)

    run("autoforward", "stop", first["id"], check=0)
    assert is_refused("127.0.0.1", first["localPort"])
    assert {row["port"] for row in rows(run)} == {servers[1].port, servers[2].port}
    # It stays away, though its server goes on; a new server is still forwarded.
    newcomer = apps[0].start_server(port=free_port())
    row_of(run, newcomer.port, status="active")
    assert servers[0].port not in {row["port"] for row in rows(run)}

    run("autoforward", "stop", apps[0].name, check=0)
    assert {row["port"] for row in rows(run)} == {servers[2].port}
    assert is_refused("127.0.0.1", second["localPort"])
    run("autoforward", "attach", apps[0].name, check=0)
    assert row_of(run, servers[0].port, status="active")["id"] == first["id"]

    run("autoforward", "detach", apps[1].name, check=0)
    assert is_refused("127.0.0.1", third["localPort"])
    assert {row["containerName"] for row in rows(run)} == {apps[0].name}
    run("autoforward", "detach", "--all", check=0)
    assert rows(run) == []
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")
    eventually(lambda: {entry["state"] for entry in registry(home)["entries"]} == {"reserved"}, what="reserved")
    wait_steps(home, servers[2].port, ["forwarded", "unforwarded"])
    eventually(lambda: names(logged(home)).count("detached") == 2, what="both are detached")
    assert names(logged(home)).count("attached") == 2
    # Twice is fine.
    run("autoforward", "detach", "--all", check=0)
    run("autoforward", "detach", apps[1].name, check=0)


def test_stop_of_what_is_not_there(container: ContainerFactory, run: Runner) -> None:
    assert run("autoforward", "stop", "fwd-00000000").returncode in (0, 4)
    app = container()
    run("autoforward", "attach", app.name, check=0)
    done = run("autoforward", "stop", "fwd-00000000")
    assert done.returncode == 4
    assert "fwd-00000000" in done.stderr


@pytest.mark.parametrize(("lane", "processes"), [("agent", 1), ("socat", 2)])
def test_detach_leaves_nothing_in_the_container(
    container: ContainerFactory, run: Runner, lane: str, processes: int
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    with socket.create_connection(("127.0.0.1", row_of(run, server.port)["localPort"]), timeout=20) as client:
        ask(client)
        assert len(app.processes(of_tests=False)) >= processes, "the agent, or a watcher and a relay"
        run("autoforward", "detach", app.name, check=0)
        eventually(lambda: app.processes(of_tests=False) == [], timeout_s=10)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# -- status and logs -----------------------------------------------------------------------------


def test_status_shows_the_supervisor_its_sessions_and_what_their_lane_can(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    assert json.loads(run("autoforward", "status", "--json", check=0).stdout)["running"] is False
    assert supervisor_of(home) is None, "asking starts nothing"
    app = container()
    run("autoforward", "attach", app.name, check=0)
    status = json.loads(run("autoforward", "status", "--json", check=0).stdout)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    assert (status["running"], status["pid"], status["home"]) == (True, supervisor.pid, str(home))
    assert status["version"]
    assert status["engines"][0]["host"]
    [session] = status["sessions"]
    assert (session["container_id"], session["container_name"], session["state"]) == (app.id, app.name, "watching")
    lane = session["lane"]
    assert (lane["name"], lane["half_close"], lane["udp"]) == ("agent", True, True)
    said = run("autoforward", "status", check=0).stdout
    assert f"pid {supervisor.pid}" in said
    assert [line.split() for line in said.splitlines() if session["id"] in line] == [
        [
            app.name,
            "watching",
            "0",
            "agent",
            "half-close,",
            "UDP",
            "on" if session["direct"]["on"] else "off",
            session["id"],
        ]
    ]


@pytest.mark.parametrize(("lane", "half_close"), [("nc", True), ("devtcp", False)])
def test_lane_that_is_asked_for_is_taken(container: ContainerFactory, run: Runner, lane: str, half_close: bool) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    row = row_of(run, server.port, status="active")
    assert row["lane"] == lane
    assert fetch(row["url"]) == "hello\n"
    [session] = json.loads(run("autoforward", "status", "--json", check=0).stdout)["sessions"]
    assert (session["lane"]["name"], session["lane"]["half_close"]) == (lane, half_close)
    assert session["lane"]["note"] or half_close, "what it cannot do is said"


def test_logs_are_about_what_is_asked_for(container: ContainerFactory, run: Runner) -> None:
    apps = [container(), container()]
    for app in apps:
        # Else who shares the network is said, by name.
        run("autoforward", "attach", app.name, "--no-direct", check=0)
        run("autoforward", "detach", app.name, check=0)
    everything = run("autoforward", "logs", check=0).stdout
    about = run("autoforward", "logs", apps[0].name, check=0).stdout
    assert all(app.name in everything for app in apps)
    assert apps[0].name in about
    assert apps[1].name not in about
    assert len(run("autoforward", "logs", "--lines", "1", check=0).stdout.splitlines()) == 1


# -- other ways to ask ---------------------------------------------------------------------------


def test_pinned_number_that_is_taken_is_had_once_it_is_free(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    pinned = free_port()
    with socket.create_server(("127.0.0.1", pinned)):
        done = run("autoforward", "attach", app.name, f"{pinned}:{server.port}", check=0)
        assert f"port {server.port} of {app.name} is not forwarded: host port {pinned} is in use" in done.stderr
        row = row_of(run, server.port, status="failed")
        assert (row["localPort"], row["id"]) == (None, None)
    event = wait_event(home, "forwarded", server.port)
    assert event["localPort"] == pinned
    assert fetch(f"http://127.0.0.1:{pinned}/") == "hello\n"
    wait_steps(home, server.port, ["failed", "forwarded"])


def test_current_folder_is_the_default_target(container: ContainerFactory, run: Runner, tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    app, other = container(labels=dev_container_labels(str(folder))), container()
    server = app.start_server(port=free_port())
    other.start_server(port=free_port())
    run("autoforward", "attach", other.name, check=0)
    run("autoforward", "attach", cwd=folder, check=0)
    for target in (".", str(folder)):
        listed = json.loads(run("autoforward", "list", "--json", target, cwd=folder, check=0).stdout)
        assert [(row["port"], row["target"]) for row in listed] == [(server.port, str(folder))]
    run("autoforward", "stop", ".", cwd=folder, check=0)
    assert [row["containerName"] for row in rows(run)] == [other.name]
    run("autoforward", "detach", ".", cwd=folder, check=0)
    assert [row["containerName"] for row in rows(run)] == [other.name]


def test_bind_address_is_said_loudly_each_time(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    loopback = row_of(run, server.port, status="active")
    assert loopback["hostIp"] == "127.0.0.1"
    for _ in range(2):
        said = run("autoforward", "attach", app.name, "--bind", "0.0.0.0", check=0).stderr
        assert "autoforward: warning: forwards listen on 0.0.0.0" in said
        row = row_of(run, server.port, status="active")
        assert (row["hostIp"], row["localPort"]) == ("0.0.0.0", loopback["localPort"])
        assert fetch(f"http://127.0.0.1:{row['localPort']}/") == "hello\n"
    wait_steps(home, server.port, ["forwarded", "unforwarded", "forwarded"])

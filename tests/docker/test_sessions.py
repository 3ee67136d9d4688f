"""Sessions on a real engine: declared ports, two workspaces, attach again, ends, restarts, rebuilds, lost supervisors."""

from __future__ import annotations

import json
import os
import signal
import socket
import uuid
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.containers import HELPER_DIR, eventually, fetch, is_refused
from tests.docker.observing import Command, ask, free_port, logged, names, registry, row_of, rows, wait_event


def _labels(folder: str, **configuration: object) -> dict[str, str]:
    """Those of a dev container of that folder; `configuration` is its devcontainer.json."""
    return {"devcontainer.local_folder": folder, "devcontainer.metadata": json.dumps([configuration])}


def _folder() -> str:
    return f"/home/someone/ws-{uuid.uuid4().hex[:8]}"


# -- declared ports ------------------------------------------------------------------------------


def test_declared_port_refuses_until_its_server_is_up_and_again_when_it_stops(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    port = free_port()
    app = container(labels=_labels(_folder(), forwardPorts=[port]))
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
        assert row_of(run, port)["status"] == "active"
        server.stop()
        since = wait_event(home, "waiting", port, since=since)["seq"]
        assert is_refused("127.0.0.1", port)
        assert is_refused("::1", port)
        assert row_of(run, port)["localPort"] == port
    assert names(logged(home, port)) == ["waiting", "forwarded", "waiting", "forwarded", "waiting"]
    assert {(event["id"], event["localPort"]) for event in logged(home, port)} == {(row["id"], port)}


def test_number_of_a_waiting_port_is_nobody_elses(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container(labels=_labels(_folder(), forwardPorts=[port]))
    run("autoforward", "attach", app.name, check=0)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
            other.bind((host, port))


# -- two workspaces with the same port -----------------------------------------------------------


def test_two_workspaces_on_one_number(container: ContainerFactory, run: Runner, home: Path) -> None:
    folders = [_folder(), _folder()]
    apps = [container(labels=_labels(folder)) for folder in folders]
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
    [event] = [event for event in logged(home, port) if event["containerId"] == apps[1].id]
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


def test_remapped_number_is_kept_over_detach_and_attach(container: ContainerFactory, run: Runner, home: Path) -> None:
    apps = [container(labels=_labels(_folder())) for _ in range(2)]
    port = apps[0].start_server(port=free_port(), text="0").port
    apps[1].start_server(port=port, text="1")
    for app in apps:
        run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, apps[1].name)
    for app in apps:
        run("autoforward", "detach", app.name, check=0)
    assert rows(run) == []
    assert {entry["state"] for entry in registry(home)["entries"]} == {"reserved"}

    # Alone now, and the number that it asked for is free: it gets the one that people have in their bookmarks.
    run("autoforward", "attach", apps[1].name, check=0)
    after = row_of(run, port, apps[1].name)
    assert (after["localPort"], after["id"]) == (before["localPort"], before["id"])
    assert after["remapped"]
    assert after["reason"]
    assert fetch(after["url"]) == "1\n"


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
    assert names(logged(home, kept.port)) == ["forwarded"]
    assert len(registry(home)["sessions"]) == 1


@pytest.mark.xfail(reason="another interval needs another watcher, whose predecessor takes its relays along")
def test_another_poll_interval_cuts_nothing(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
        ask(client)
        run("autoforward", "attach", app.name, "--poll-interval", "0.2", check=0)
        ask(client)
    assert names(logged(home, server.port)) == ["forwarded"]


def test_no_auto_forwards_what_is_declared_only(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container(labels=_labels(_folder(), forwardPorts=[port]))
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
    assert registry(home)["sessions"] == []
    assert {entry["state"] for entry in registry(home)["entries"]} == {"reserved"}
    assert names(logged(home, servers[2].port)) == ["forwarded", "unforwarded"]
    assert names(logged(home)).count("attached") == names(logged(home)).count("detached") == 2
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


def test_nothing_stays_in_the_container_after_detach(container: ContainerFactory, run: Runner) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    with socket.create_connection(("127.0.0.1", row_of(run, server.port)["localPort"]), timeout=20) as client:
        ask(client)
        assert len(app.processes(of_tests=False)) >= 2, "the watcher and a relay"
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
    assert (lane["name"], lane["half_close"], lane["udp"]) == ("socat", True, False)
    said = run("autoforward", "status", check=0).stdout
    assert f"pid {supervisor.pid}" in said
    assert "lane socat (half-close" in said


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
        run("autoforward", "attach", app.name, check=0)
        run("autoforward", "detach", app.name, check=0)
    everything = run("autoforward", "logs", check=0).stdout
    about = run("autoforward", "logs", apps[0].name, check=0).stdout
    assert all(app.name in everything for app in apps)
    assert apps[0].name in about
    assert apps[1].name not in about
    assert len(run("autoforward", "logs", "--lines", "1", check=0).stdout.splitlines()) == 1


# -- containers that stop, start, vanish and come again ------------------------------------------


def test_container_stops_and_starts(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, server.port, status="active")
    app.stop()
    since = wait_event(home, "reconnecting", server.port)["seq"]
    row = row_of(run, server.port, status="reconnecting")
    assert (row["localPort"], row["id"], row["autoForwarded"]) == (before["localPort"], before["id"], False)
    assert row["reason"]
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", before["localPort"]))
    app.start()
    app.start_server(port=server.port, text="after the start")
    wait_event(home, "reconnected", server.port, since=since)
    row = row_of(run, server.port, status="active")
    assert (row["localPort"], row["id"]) == (before["localPort"], before["id"])
    assert fetch(row["url"]) == "after the start\n"
    assert names(logged(home, server.port)) == ["forwarded", "reconnecting", "reconnected"]


def test_connection_made_while_the_container_restarts_is_served(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    app.stop()
    wait_event(home, "reconnecting", server.port)
    with socket.create_connection(("127.0.0.1", host_port), timeout=20) as client:
        app.start()
        app.start_server(port=server.port, text="hello")
        assert ask(client).endswith(b"hello\n")


def test_server_that_does_not_come_back_with_its_container(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    app.restart()
    wait_event(home, "unforwarded", server.port, timeout_s=40)
    assert is_refused("127.0.0.1", host_port)
    assert rows(run) == []


def test_container_removed_and_built_anew(container: ContainerFactory, run: Runner, home: Path) -> None:
    folder = _folder()
    old = container(labels=_labels(folder))
    server = old.start_server(port=free_port(), text="old")
    # Somebody else has the number, so that "the same again" is not just the default.
    with socket.create_server(("127.0.0.1", server.port)):
        run("autoforward", "attach", old.name, check=0)
    before = row_of(run, server.port, status="active")
    assert before["localPort"] != server.port
    old.remove()
    event = wait_event(home, "unforwarded", server.port)
    assert (event["status"], event["autoForwarded"], event["localPort"]) == (None, False, before["localPort"])
    wait_event(home, "detached", None)
    assert is_refused("127.0.0.1", before["localPort"])
    eventually(lambda: registry(home)["sessions"] == [])
    [entry] = registry(home)["entries"]
    assert (entry["state"], entry["host_port"], entry["workspace"]) == ("reserved", before["localPort"], folder)

    new = container(labels=_labels(folder))
    new.start_server(port=server.port, text="new")
    run("autoforward", "attach", new.name, check=0)
    after = row_of(run, server.port, status="active")
    assert (after["localPort"], after["id"], after["containerId"]) == (before["localPort"], before["id"], new.id)
    assert fetch(after["url"]) == "new\n"


def test_new_container_takes_over_the_sockets_of_the_old_one(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    folder = _folder()
    old = container(labels=_labels(folder))
    server = old.start_server(port=free_port(), text="old")
    run("autoforward", "attach", old.name, check=0)
    before = row_of(run, server.port, status="active")
    new = container(labels=_labels(folder))
    new.start_server(port=server.port, text="new")
    run("autoforward", "attach", new.name, check=0)
    [after] = rows(run)
    assert (after["localPort"], after["id"], after["containerId"]) == (before["localPort"], before["id"], new.id)
    assert fetch(after["url"]) == "new\n"
    assert "unforwarded" not in names(logged(home, server.port))
    assert len(registry(home)["sessions"]) == 1
    old.remove()
    assert fetch(after["url"]) == "new\n", "the old one's end is nothing to the session any more"
    eventually(lambda: old.id not in run("docker", "ps", "-q", "--no-trunc").stdout)
    assert row_of(run, server.port)["status"] == "active"


# -- the supervisor ------------------------------------------------------------------------------


def test_supervisor_ends_when_nothing_is_left_to_do(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    run("autoforward", "attach", app.name, env={"AUTOFORWARD_IDLE_EXIT_S": "1"}, check=0)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    run("autoforward", "detach", app.name, check=0)
    supervisor.wait(timeout=20)
    assert not (home / "supervisor.sock").exists()
    assert rows(run) == []
    assert supervisor_of(home) is None, "listing nothing starts nothing"


def test_one_supervisor_for_all(container: ContainerFactory, run: Runner, home: Path) -> None:
    pids = set()
    for _ in range(2):
        run("autoforward", "attach", container().name, check=0)
        supervisor = supervisor_of(home)
        assert supervisor is not None
        pids.add(supervisor.pid)
    assert len(pids) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lost_supervisor_is_made_good_by_the_next_command(
    container: ContainerFactory, run: Runner, home: Path, number: int
) -> None:
    app = container()
    servers = [app.start_server(port=free_port(), text=f"hello {index}") for index in range(2)]
    pinned = free_port()
    run("autoforward", "attach", app.name, f"{pinned}:{servers[1].port}", check=0)
    with socket.create_server(("127.0.0.1", (other := app.start_server(port=free_port())).port)):
        remapped = row_of(run, other.port, status="active")
    assert remapped["remapped"]
    before = {row["port"]: (row["localPort"], row["id"]) for row in rows(run)}
    assert len(before) == 3
    supervisor = supervisor_of(home)
    assert supervisor is not None
    os.kill(supervisor.pid, number)
    supervisor.wait(timeout=20)
    assert is_refused("127.0.0.1", pinned)

    after = {row["port"]: (row["localPort"], row["id"]) for row in rows(run)}
    assert after == before
    for index, server in enumerate(servers):
        assert fetch(f"http://127.0.0.1:{after[server.port][0]}/") == f"hello {index}\n"
    seqs = [event["seq"] for event in logged(home)]
    assert seqs == sorted(set(seqs)), "numbers go on where the last one stopped"


def test_foreground_command_says_that_the_supervisor_was_lost(container: ContainerFactory, home: Path) -> None:
    server = container().start_server(port=free_port())
    host_port = free_port()
    with Command(home, "autoforward", "forward", server.container.name, f"{host_port}:{server.port}") as command:
        command.wait_line(lambda line: line.startswith("Forwarding"))
        supervisor = supervisor_of(home)
        assert supervisor is not None
        supervisor.kill()
        assert command.wait() == 1
        assert [line for line in command.lines[1:] if not line.startswith("autoforward: hint: ")] == [
            "autoforward: error: the supervisor ended before it had answered"
        ]


def test_container_that_went_away_with_the_supervisor(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    row_of(run, server.port, status="active")
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(timeout=20)
    app.remove()
    assert rows(run) == []
    eventually(lambda: registry(home)["sessions"] == [])
    assert [entry["state"] for entry in registry(home)["entries"]] == ["reserved"]


# -- other things that happen to containers ------------------------------------------------------


def test_restart_of_a_container_that_is_its_server(container: ContainerFactory, run: Runner, home: Path) -> None:
    port = free_port()
    app = container(command=["python3", f"{HELPER_DIR}/server.py", "http", "--port", str(port)])
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, status="active")
    for _ in range(2):
        since = logged(home)[-1]["seq"]
        app.restart()
        # Whether the loss was seen as such or was over at once: afterwards a page comes, from the same number.
        assert eventually(lambda: fetch(before["url"]) == "hello\n", timeout_s=20)
        row = row_of(run, port, status="active")
        assert (row["localPort"], row["id"]) == (before["localPort"], before["id"])
        assert "unforwarded" not in names(logged(home, port, since=since))


def test_pause_and_unpause(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, server.port, status="active")
    app.raw.pause()
    since = wait_event(home, "reconnecting", server.port)["seq"]
    assert "paused" in row_of(run, server.port, status="reconnecting")["reason"]
    with socket.create_connection(("127.0.0.1", row["localPort"]), timeout=20) as client:
        app.raw.unpause()
        assert ask(client).endswith(b"hello\n"), "what came in the pause is served after it"
    wait_event(home, "reconnected", server.port, since=since)
    assert row_of(run, server.port, status="active")["localPort"] == row["localPort"]


def test_renamed_container(container: ContainerFactory, run: Runner) -> None:
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, server.port, status="active")
    renamed = f"{app.name}-renamed"
    app.raw.rename(renamed)
    eventually(lambda: row_of(run, server.port)["containerName"] == renamed)
    run("autoforward", "attach", renamed, check=0)
    [after] = rows(run)
    assert (after["id"], after["localPort"]) == (before["id"], before["localPort"]), "one session, not a second one"
    run("autoforward", "detach", renamed, check=0)
    assert rows(run) == []


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
    assert names(logged(home, server.port)) == ["failed", "forwarded"], "told once, however often it was tried"


@pytest.mark.parametrize(
    "options",
    [
        {"user": "dev"},
        {"user": "dev", "read_only": True},
        {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]},
        {"init": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_containers_that_are_run_otherwise(
    container: ContainerFactory, run: Runner, options: dict[str, object]
) -> None:
    app = container(**options)  # type: ignore[arg-type]
    run("autoforward", "attach", app.name, check=0)
    server = app.start_server(port=free_port())
    row = row_of(run, server.port, status="active")
    assert fetch(row["url"]) == "hello\n"
    run("autoforward", "detach", app.name, check=0)
    eventually(lambda: app.processes(of_tests=False) == [], timeout_s=10)


def test_current_folder_is_the_default_target(container: ContainerFactory, run: Runner, tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    app, other = container(labels=_labels(str(folder))), container()
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
    assert names(logged(home, server.port)) == ["forwarded", "unforwarded", "forwarded"]

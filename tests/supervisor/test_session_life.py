"""What a session lives through: containers that stop, start, vanish and come again, and lost supervisors."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import docker
import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import HELPER_DIR, LABEL, eventually, fetch, is_refused, run_id
from tests.support.observing import (
    Command,
    ask,
    dev_container_labels,
    free_port,
    logged,
    names,
    new_folder,
    registry,
    row_of,
    rows,
    wait_event,
    wait_steps,
)

pytestmark = pytest.mark.docker

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
    wait_steps(home, server.port, ["forwarded", "reconnecting", "reconnected"])


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
    """A rebuild: the session waits for the next container, with its pin, and goes on there without a command."""
    folder = new_folder()
    old = container(labels=dev_container_labels(folder))
    server = old.start_server(port=free_port(), text="old")
    pinned = free_port()
    # Somebody else has the number, so that "the same again" is not just the default.
    with socket.create_server(("127.0.0.1", server.port)):
        run("autoforward", "attach", old.name, f"{pinned}:{server.port}", check=0)
        before = row_of(run, server.port, status="active")
        assert before["localPort"] == pinned
        old.remove()
        eventually(lambda: row_of(run, server.port)["status"] == "reconnecting")
        expected = f"{old.name} was removed: the dev container of {folder} is waited for"
        eventually(lambda: row_of(run, server.port)["reason"] == expected)
        eventually(lambda: [one["removed"] is not None for one in registry(home)["sessions"]] == [True])
        # What only has the name, or another folder, is not the next one.
        container(labels=dev_container_labels(new_folder()), name=old.name)

        new = container(labels=dev_container_labels(folder))
        new.start_server(port=server.port, text="new")
        after = row_of(run, server.port, new.name, status="active", timeout_s=40)
        assert (after["localPort"], after["id"], after["containerId"]) == (pinned, before["id"], new.id)
        assert fetch(after["url"]) == "new\n"
        assert "unforwarded" not in names(logged(home, server.port))
        eventually(lambda: [one["container_id"] for one in registry(home)["sessions"]] == [new.id])
        assert registry(home)["sessions"][0]["removed"] is None

        # Also over a supervisor that was killed meanwhile, and `detach` forgets it.
        supervisor = supervisor_of(home)
        assert supervisor is not None
        supervisor.kill()
        supervisor.wait(timeout=20)
        new.remove()
        run("autoforward", "list", check=0)
        third = container(labels=dev_container_labels(folder))
        third.start_server(port=server.port, text="third")
        after = row_of(run, server.port, third.name, status="active", timeout_s=40)
        assert (after["localPort"], fetch(after["url"])) == (pinned, "third\n")
        third.remove()
        eventually(lambda: registry(home)["sessions"][0]["removed"])
        run("autoforward", "detach", folder, check=0)
        eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_renamed_container_keeps_its_session_and_leaves_its_name_to_another(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    old = container()
    name, port = old.name, free_port()
    old.start_server(port=port, text="old")
    run("autoforward", "attach", name, check=0)
    before = row_of(run, port, status="active")
    old.raw.rename(f"{name}-old")
    eventually(lambda: row_of(run, port)["containerName"] == f"{name}-old")
    new = container(name=name)
    new.start_server(port=port, text="new")
    run("autoforward", "attach", name, check=0)
    found = {row["containerName"]: row for row in rows(run)}
    assert {key: fetch(row["url"]) for key, row in found.items()} == {f"{name}-old": "old\n", name: "new\n"}
    assert found[f"{name}-old"]["localPort"] == before["localPort"] != found[name]["localPort"]

    # While no supervisor runs, too.
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(timeout=20)
    new.raw.rename(f"{name}-new")
    third = container(name=name)
    run("autoforward", "attach", name, check=0)
    assert {one["container_id"] for one in registry(home)["sessions"]} == {old.id, new.id, third.id}
    run("autoforward", "detach", name, check=0)
    assert {one["container_id"] for one in registry(home)["sessions"]} == {old.id, new.id}


def test_new_container_takes_over_the_sockets_of_the_old_one(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    folder = new_folder()
    old = container(labels=dev_container_labels(folder))
    server = old.start_server(port=free_port(), text="old")
    run("autoforward", "attach", old.name, check=0)
    before = row_of(run, server.port, status="active")
    new = container(labels=dev_container_labels(folder))
    new.start_server(port=server.port, text="new")
    run("autoforward", "attach", "--replace", new.name, check=0)
    [after] = rows(run)
    assert (after["localPort"], after["id"], after["containerId"]) == (before["localPort"], before["id"], new.id)
    assert fetch(after["url"]) == "new\n"
    assert "unforwarded" not in names(logged(home, server.port))
    assert len(registry(home)["sessions"]) == 1
    old.remove()
    assert fetch(after["url"]) == "new\n", "the old one's end is nothing to the session any more"
    eventually(lambda: old.id not in run("docker", "ps", "-q", "--no-trunc").stdout)
    assert row_of(run, server.port, status="active")


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


# -- the supervisor ------------------------------------------------------------------------------


def test_supervisor_ends_when_nothing_is_left_to_do(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container()
    run("autoforward", "attach", app.name, env={"AUTOFORWARD_IDLE_EXIT_S": "1"}, check=0, real=True)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    run("autoforward", "detach", app.name, check=0)
    supervisor.wait(timeout=20)
    assert not (home / "supervisor.sock").exists()
    assert rows(run) == []
    assert supervisor_of(home) is None, "listing nothing starts nothing"


def test_all_sessions_share_one_supervisor(container: ContainerFactory, run: Runner, home: Path) -> None:
    pids = set()
    for _ in range(2):
        run("autoforward", "attach", container().name, check=0, real=True)
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
    run("autoforward", "attach", app.name, f"{pinned}:{servers[1].port}", check=0, real=True)
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        other = app.start_server(port=taken.getsockname()[1])
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


def test_number_of_a_stopped_container_is_let_go_when_another_is_created_that_publishes_it(
    container: ContainerFactory, run: Runner, home: Path, engine: docker.DockerClient
) -> None:
    """Until then it is held, by a process whose name says whose."""
    port = free_port()
    app = container()
    app.start_server(port=port)
    other = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    assert row_of(run, port, status="active")["localPort"] == port
    supervisor = supervisor_of(home)
    assert supervisor is not None
    assert Path(f"/proc/{supervisor.pid}/comm").read_text() == "autoforward\n"
    app.stop()
    wait_event(home, "reconnecting", port)
    since = logged(home)[-1]["seq"]
    asked = engine.containers.create(
        app.raw.image, ["sleep", "60"], ports={"80/tcp": ("127.0.0.1", port)}, labels={LABEL: run_id()}
    )
    event = wait_event(home, "unforwarded", port, since=since)
    assert event["reason"] == "a container that publishes this host port was created"
    assert row_of(run, other.port)["status"] == "reconnecting", "what it does not ask for stays"
    asked.start()

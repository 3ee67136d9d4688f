"""`autoforward watch` on a real engine: what runs, what starts later, what others have, how it ends, what it survives.

Always with a label of the test's own: other tests have dev containers on the same engine.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoforward.config.container_filter import ContainerFilter
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import resolve_endpoint
from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Container, eventually, fetch, is_refused
from tests.support.engine_proxy import EngineProxy
from tests.support.observing import (
    Command,
    Row,
    dev_container_labels,
    free_port,
    logged,
    new_folder,
    registry,
    row_of,
    rows,
    status_json,
)

pytestmark = pytest.mark.docker

WAIT_S = 60.0

Marked = Callable[..., Container]


@pytest.fixture
def mark() -> str:
    """A label that only this test's containers have."""
    return f"autoforward.watched={uuid.uuid4().hex[:8]}"


@pytest.fixture
def marked(container: ContainerFactory, mark: str) -> Marked:
    """A factory of containers that the test's watch selects."""
    key, _, value = mark.partition("=")

    def make(labels: dict[str, str] | None = None, **options: Any) -> Container:
        return container(labels={**(labels or {}), key: value}, **options)

    return make


def watching(home: Path, mark: str, *flags: str) -> Command:
    command = Command(home, "autoforward", "watch", "--label", mark, *flags)
    command.wait_line(lambda line: line.startswith("Watching for "), timeout_s=WAIT_S)
    return command


def attached(command: Command, one: Container) -> None:
    command.wait_line(lambda line: line.startswith(f"Attached to {one.name}"), timeout_s=WAIT_S)


def status(run: Runner) -> Row:
    said: Row = status_json(run)
    return said


def end(command: Command) -> None:
    command.signal(signal.SIGINT)
    assert command.wait(timeout_s=WAIT_S) == 0, command.lines


def test_three_dev_containers_one_of_them_later_and_then_the_end(
    marked: Marked, container: ContainerFactory, run: Runner, home: Path, mark: str
) -> None:
    folder = new_folder()
    ports = [free_port() for _ in range(3)]
    first = marked(dev_container_labels(folder, portsAttributes={str(ports[0]): {"label": "its own rule"}}))
    second, other = marked(), container()
    first.start_server(port=ports[0], text="first")
    other.start_server(port=ports[1], text="other")
    with watching(home, mark, "--exclude", "1-19999") as command:
        attached(command, first)
        attached(command, second)
        third = marked()
        attached(command, third)
        third.start_server(port=ports[2], text="third")
        row = row_of(run, ports[0], status="active", timeout_s=WAIT_S)
        assert (row["label"], row["workspaceFolder"]) == ("its own rule", folder), "as `attach` would read it"
        late = row_of(run, ports[2], status="active", timeout_s=WAIT_S)
        assert fetch(f"http://127.0.0.1:{late['localPort']}/") == "third\n"
        assert [row["port"] for row in rows(run) if row["port"] == ports[1]] == [], "nobody asked for that one"
        assert {one["options"]["exclude"][0][1] for one in registry(home)["sessions"]} == {19999}
        [watch] = status(run)["watches"]
        assert (watch["commands"], watch["sessions"], watch["problem"]) == (1, 3, None)

        # A restart is nothing special; nor is a container that goes, and its name that comes again.
        second.restart()
        port = second.start_server(port=free_port()).port
        row_of(run, port, status="active", timeout_s=WAIT_S)
        name = third.name
        third.remove()
        command.wait_line(lambda line: line.startswith(f"No longer attached to {name}"), timeout_s=WAIT_S)
        again = marked(name=name)
        again.start_server(port=ports[2], text="again")
        row = row_of(run, ports[2], status="active", timeout_s=WAIT_S)
        assert (row["localPort"], fetch(f"http://127.0.0.1:{row['localPort']}/")) == (late["localPort"], "again\n")
        end(command)
    assert rows(run) == []
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")
    assert is_refused("127.0.0.1", late["localPort"])
    for one in (first, second, again):
        eventually(lambda one=one: one.processes(of_tests=False) == [], timeout_s=WAIT_S, what="nothing is left in it")  # type: ignore[misc]


def test_sessions_of_other_commands_stay_theirs(marked: Marked, run: Runner, home: Path, mark: str) -> None:
    own, forwarded, taken = marked(), marked(), marked()
    server = own.start_server(port=free_port())
    single, beside = forwarded.start_server(port=free_port()), forwarded.start_server(port=free_port())
    run("autoforward", "attach", own.name, "--exclude", str(server.port), check=0)
    run("autoforward", "forward", "-d", forwarded.name, str(single.port), check=0)
    with watching(home, mark) as command:
        command.wait_line(lambda line: line.startswith(f"{own.name} has a session of its own"), timeout_s=WAIT_S)
        attached(command, forwarded)
        attached(command, taken)
        row_of(run, beside.port, status="active", timeout_s=WAIT_S)
        row = row_of(run, single.port, status="active")
        assert server.port not in {row["port"] for row in rows(run) if row["id"]}, "its options stay"
        run("autoforward", "attach", taken.name, check=0)
        end(command)
    kept = {one["container_name"]: one for one in status(run)["sessions"]}
    assert set(kept) == {own.name, forwarded.name, taken.name}
    assert [kept[one.name]["attached"] for one in (own, forwarded, taken)] == [True, False, True]
    assert {one["watch"] for one in kept.values()} == {None}
    [left] = [row for row in rows(run) if row["id"]]
    assert (left["port"], left["localPort"]) == (single.port, row["localPort"])


def test_container_detached_by_hand_stays_detached_until_it_restarts(
    marked: Marked, run: Runner, home: Path, mark: str
) -> None:
    one, other = marked(), marked()
    one.start_server(port=free_port())
    with watching(home, mark) as command:
        attached(command, one)
        attached(command, other)
        run("autoforward", "detach", one.name, check=0)
        # Another supervisor has it from the command, and another look (at the third one) finds it as before.
        run("autoforward", "restart", check=0)
        third = marked()
        attached(command, third)
        assert one.name not in {session["container_name"] for session in status(run)["sessions"]}
        one.restart()
        port = one.start_server(port=free_port()).port
        row_of(run, port, status="active", timeout_s=WAIT_S)
        end(command)


def test_supervisor_and_command_are_killed(marked: Marked, run: Runner, home: Path, mark: str) -> None:
    """Each comes back on the same host ports; what a lost command wanted stays, and ends with the next one."""
    one = marked()
    port = one.start_server(port=free_port(), text="still").port
    taken = free_port()
    with watching(home, mark) as command:
        row = row_of(run, port, status="active", timeout_s=WAIT_S)
        supervisor = supervisor_of(home)
        assert supervisor is not None
        supervisor.kill()
        command.wait_line(lambda line: line.startswith("The supervisor ended"), timeout_s=WAIT_S)
        eventually(lambda: supervisor_of(home) not in (None, supervisor), timeout_s=WAIT_S)
        assert row_of(run, port, status="active", timeout_s=WAIT_S)["localPort"] == row["localPort"]
        command.signal(signal.SIGKILL)
        command.wait(timeout_s=WAIT_S)
    eventually(lambda: status(run)["watches"][0]["commands"] == 0, timeout_s=WAIT_S)
    before = logged(home)[-1]["seq"]
    with watching(home, mark) as command:
        attached(command, one)
        assert fetch(f"http://127.0.0.1:{row['localPort']}/") == "still\n"
        assert [event for event in logged(home, port, since=before) if event["event"] == "unforwarded"] == []
        other = marked()
        other.start_server(port=taken)
        row_of(run, taken, status="active", timeout_s=WAIT_S)
        end(command)
    assert rows(run) == []
    assert is_refused("127.0.0.1", row["localPort"])


def test_engine_is_away_at_first_and_in_between(
    marked: Marked, run: Runner, home: Path, mark: str, proxy: EngineProxy
) -> None:
    proxy.vanish()
    first = marked()
    with watching(home, mark, "--docker-host", proxy.host) as command:
        command.wait_line(lambda line: "does not answer" in line and "trying again" in line, timeout_s=WAIT_S)
        assert status(run)["watches"][0]["problem"]
        proxy.appear()
        attached(command, first)
        proxy.vanish()
        proxy.cut()
        second = marked()
        eventually(lambda: sum("trying again" in line for line in command.lines) == 2, timeout_s=WAIT_S)
        proxy.appear()
        attached(command, second)
        command.wait_line("The engine answers again.".__eq__, timeout_s=WAIT_S)
        end(command)


def test_services_of_its_project_only_when_that_is_asked_for(
    marked: Marked, container: ContainerFactory, run: Runner, home: Path, mark: str
) -> None:
    project = f"shop{uuid.uuid4().hex[:8]}"

    def labels(service: str) -> dict[str, str]:
        words = {"project": project, "service": service, "container-number": "1"}
        return {f"com.docker.compose.{key}": value for key, value in words.items()}

    app = marked(labels("app"))
    db = container(labels=labels("db"))
    with watching(home, mark) as command:
        attached(command, app)
        end(command)
    assert db.name not in {event["containerName"] for event in logged(home)}
    with watching(home, mark, "--services", "all") as command:
        attached(command, app)
        attached(command, db)
        late = container(labels=labels("late"))
        attached(command, late)
        end(command)
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_dev_containers_are_told_by_their_labels_on_a_real_engine(container: ContainerFactory, engine: Any) -> None:
    """Nothing is attached to here: other tests have dev containers too."""
    folder = new_folder()
    by_folder = container(labels={"devcontainer.local_folder": folder})
    by_metadata = container(labels={"devcontainer.metadata": "[]"})
    by_image = container()
    repository = f"autoforward-test/made-by-a-build-{uuid.uuid4().hex[:8]}"
    image = by_image.raw.commit(repository, changes='LABEL devcontainer.metadata="[{}]"')
    raw = engine.containers.run(image.id, ["sleep", "infinity"], detach=True, labels=dict(by_image.raw.labels))
    try:
        ours = Engine(resolve_endpoint())
        selection = ContainerFilter()
        found = {key for query in selection.queries for key in ours.find_ids(query)}
        assert {by_folder.id, by_metadata.id, raw.id} <= found
        assert by_image.id not in found
        infos = {key: ours.inspect(key) for key in (by_folder.id, by_metadata.id, raw.id)}
        assert [selection.covers(info.labels) for info in infos.values()] == [True, True, False]
        ours.close()
    finally:
        raw.remove(force=True)
        engine.images.remove(repository, force=True)


def test_a_command_line_that_cannot_be_meant(run: Runner, home: Path) -> None:
    done = run("autoforward", "watch", "--label", "=x")
    assert done.returncode == 2
    assert "--label =x" in done.stderr
    done = run("autoforward", "watch", "--settings", str(home / "none.toml"))
    assert done.returncode == 2
    assert "none.toml" in done.stderr
    assert supervisor_of(home) is None

"""All services of a compose project: `attach PROJECT/*`, `devup --services all`; same numbers, names, late comers, ends."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Container, eventually, fetch, is_refused
from tests.support.observing import (
    Row,
    begin_supervisor,
    dev_container_labels,
    free_port,
    logged,
    new_folder,
    registry,
    row_of,
    rows,
    wait_event,
)
from tests.support.workspaces import RecordedCli, WorkspaceFactory

pytestmark = pytest.mark.docker

Services = Callable[..., Container]


@pytest.fixture
def project() -> str:
    return f"shop{uuid.uuid4().hex[:8]}"


@pytest.fixture
def service(
    container: ContainerFactory, network: Callable[[], str], engine: docker.DockerClient, project: str
) -> Services:
    """A factory of services as compose makes them: labelled, on one network, found there by their name."""
    common = engine.networks.get(network())

    def make(name: str, number: int = 1, labels: dict[str, str] | None = None, **options: Any) -> Container:
        compose = {"project": project, "service": name, "container-number": str(number)}
        labelled = {f"com.docker.compose.{key}": value for key, value in compose.items()}
        one = container(labels={**labelled, **(labels or {})}, name=f"{project}-{name}-{number}", **options)
        if "network" not in options:
            common.connect(one.raw, aliases=[name])
        return one

    return make


def text_of(row: Row) -> str:
    return fetch(f"http://127.0.0.1:{row['localPort']}/").strip()


def by_service(run: Runner, *target: str) -> dict[tuple[str | None, int], Row]:
    """Forwards by service and port; ports of another host by that host's name."""
    found = {}
    for row in rows(run, *target):
        if row["id"] is not None:
            of = row["containerHost"] if row["containerHost"] not in ("127.0.0.1", "::1") else row["service"]
            found[of, row["port"]] = row
    return found


def test_two_services_on_one_number_and_a_named_one_beside_the_apps_own(
    service: Services, run: Runner, home: Path, project: str
) -> None:
    """Both on 8080, and `db:5432` of devcontainer.json next to the app's own 5432: four forwards, all correct."""
    web, sql = free_port(), free_port()
    folder = new_folder()
    attributes = {f"db:{sql}": {"label": "database"}, str(sql): {"label": "own"}}
    app = service("app", labels=dev_container_labels(folder, forwardPorts=[f"db:{sql}"], portsAttributes=attributes))
    db = service("db")
    app.start_server(port=web, text="app web")
    app.start_server(port=sql, text="app sql")
    db.start_server(port=web, text="db web")
    db.start_server(port=sql, bind="0.0.0.0", text="db sql")
    said = run("autoforward", "attach", f"{project}/*", check=0).stderr

    found = by_service(run)
    assert {key: text_of(row) for key, row in found.items()} == {
        ("app", web): "app web",
        ("app", sql): "app sql",
        ("db", web): "db web",
        ("db", sql): "db sql",
    }
    assert len({row["localPort"] for row in found.values()}) == 4
    assert {row["status"] for row in found.values()} == {"active"}
    assert found["db", sql]["label"] == "database"
    assert found["db", sql]["containerName"] == app.name, "through the app, as its configuration says"
    assert found["app", sql]["label"] == "own"
    assert {row["target"] for row in found.values()} == {f"{project}/*"}
    assert {row["workspaceFolder"] for row in found.values()} == {folder}
    [left] = [row for row in rows(run) if row["id"] is None]
    assert (left["containerName"], left["port"], left["status"]) == (db.name, sql, "ignored")
    assert left["reason"] == f"forwarded by the session of {app.name}, whose configuration names it"
    for name in (app.name, db.name):
        assert f"-> {name}:{web}" in said
    listed = run("autoforward", "list", check=0).stdout
    assert "SERVICE" in listed.splitlines()[0]

    # Numbers stick to their service, also when the project is attached to anew.
    before = {key: (row["id"], row["localPort"]) for key, row in found.items()}
    run("autoforward", "detach", f"{project}/*", check=0)
    assert rows(run) == []
    assert all(is_refused("127.0.0.1", port) for _id, port in before.values())
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")
    run("autoforward", "attach", f"{project}/*", check=0)
    after = by_service(run)
    reasons = [row["reason"] for row in after.values()]
    assert {key: (row["id"], row["localPort"]) for key, row in after.items()} == before, reasons


def test_a_service_that_starts_later_is_watched_too(service: Services, run: Runner, home: Path, project: str) -> None:
    port = free_port()
    app = service("app")
    app.start_server(port=port, text="app")
    run("autoforward", "attach", f"{project}/*", check=0)
    service("job", labels={"com.docker.compose.oneoff": "True"}).start_server(port=port, text="job")
    late = service("late")
    late.start_server(port=port, text="late")
    eventually(lambda: ("late", port) in by_service(run), timeout_s=20)
    assert text_of(by_service(run)["late", port]) == "late"
    assert set(by_service(run)) == {("app", port), ("late", port)}

    # Made anew, it has its number again.
    before = by_service(run)["late", port]["localPort"]
    late.remove()
    eventually(lambda: by_service(run)["late", port]["status"] == "reconnecting", timeout_s=20)
    service("late").start_server(port=port, text="late again")
    again = eventually(lambda: (row := by_service(run)["late", port])["status"] == "active" and row, timeout_s=20)
    assert (again["localPort"], text_of(again)) == (before, "late again")

    # A new supervisor goes on where the last one was killed.
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    assert {key: row["localPort"] for key, row in by_service(run).items()}[("late", port)] == before
    service("later").start_server(port=port, text="later")
    eventually(lambda: ("later", port) in by_service(run), timeout_s=20)


def test_every_service_is_recreated(service: Services, run: Runner, home: Path, project: str, tmp_path: Path) -> None:
    """`compose up -d --force-recreate`, and `down` and `up`: the pins of the project's file, too, which are the first one's."""
    port, pinned = free_port(), free_port()
    (tmp_path / ".autoforward.toml").write_text(f'localPorts = {{ "{port}" = {pinned} }}\n')
    of_project = {"com.docker.compose.project.working_dir": str(tmp_path)}

    def up(name: str, text: str) -> Container:
        one = service(name, labels=of_project)
        one.start_server(port=port, text=text)
        return one

    made = {name: up(name, name) for name in ("api", "db")}
    run("autoforward", "attach", f"{project}/*", check=0)
    before = {key: row["localPort"] for key, row in by_service(run).items()}
    assert before["api", port] == pinned

    def is_served(text: str) -> bool:
        found = by_service(run)
        return all(
            (row := found.get((name, port))) is not None
            and row["status"] == "active"
            and text_of(row) == f"{name} {text}"
            for name in made
        )

    # One after the other, as compose recreates them; then all at once.
    for name, one in made.items():
        one.remove()
        made[name] = up(name, f"{name} again")
    eventually(lambda: is_served("again"), timeout_s=40)
    for one in made.values():
        one.remove()
    eventually(lambda: {row["status"] for row in by_service(run).values()} == {"reconnecting"}, timeout_s=20)
    for name in reversed(made):
        made[name] = up(name, f"{name} anew")
    eventually(lambda: is_served("anew"), timeout_s=40)
    assert {key: row["localPort"] for key, row in by_service(run).items()} == before
    assert len(registry(home)["sessions"]) == 2

    # Another folder's project of that name is another one.
    made["db"].remove()
    other = service("db", labels={"com.docker.compose.project.working_dir": "/home/someone/else"})
    other.start_server(port=port, text="other")
    eventually(lambda: by_service(run)["db", port]["status"] == "reconnecting", timeout_s=20)
    log = home / "supervisor.log"
    eventually(lambda: f"{made['db'].name} was removed: its session waits" in log.read_text(), timeout_s=20)
    assert by_service(run)["db", port]["containerId"] == made["db"].id
    run("autoforward", "detach", f"{project}/*", check=0)
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")


def test_a_session_of_one_service_does_not_watch_the_others(
    service: Services, run: Runner, home: Path, project: str
) -> None:
    app = service("app")
    run("autoforward", "attach", f"{project}/app", check=0)
    service("db").start_server(port=free_port())
    port = app.start_server(port=free_port()).port
    wait_event(home, "forwarded", port)
    assert {event["service"] for event in logged(home)} == {"app"}


def test_a_service_on_the_network_of_another_is_forwarded_once(service: Services, run: Runner, project: str) -> None:
    app = service("app", labels=dev_container_labels(new_folder()))
    # `a-…` sorts before the dev container, which has the first say all the same.
    beside = service("a-sidecar", network=f"container:{app.id}")
    server = beside.start_server(port=free_port(), text="shared")
    run("autoforward", "attach", f"{project}/*", check=0)
    assert text_of(row_of(run, server.port, app.name, status="active")) == "shared"
    assert row_of(run, server.port, beside.name)["status"] == "ignored"


def test_services_target_that_cannot_be_meant_is_refused(service: Services, run: Runner, project: str) -> None:
    done = run("autoforward", "attach", "no-such-project/*")
    assert done.returncode == 4
    assert "no compose project is called no-such-project" in done.stderr
    one = service("app")
    done = run("autoforward", "attach", f"{project}/*", "8080:80")
    assert done.returncode == 2
    assert f"name it: {project}/SERVICE" in done.stderr
    one.stop()
    done = run("autoforward", "attach", f"{project}/*")
    assert done.returncode == 4
    assert f"no container of compose project {project} is running" in done.stderr
    done = run("devup", "--services", "all")
    assert done.returncode == 2


@pytest.mark.timeout(240)
def test_devup_for_all_services_and_devdown(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path
) -> None:
    one = workspace("compose", forwardPorts=["db:5432"])
    done = run(
        "devup",
        "--auto-forward",
        "--services",
        "all",
        "--ports-events",
        "--devcontainer-path",
        cli.path,
        *one.up_args,
        check=0,
        timeout_s=150,
    )
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "success"
    app, db = one.containers()
    port = app.start_server(port=free_port(), text="app").port
    db.start_server(port=port, text="db")
    for name in (app.name, db.name):
        row_of(run, port, name, status="active")
    found = by_service(run, str(one.folder))
    assert {key: text_of(row) for key, row in found.items() if key[1] == port} == {
        ("app", port): "app",
        ("db", port): "db",
    }
    assert found["db", 5432]["containerName"] == app.name
    assert {row["workspaceFolder"] for row in found.values()} == {str(one.folder)}
    run("devdown", "--workspace-folder", str(one.folder), check=0)
    assert rows(run) == []
    eventually(lambda: registry(home)["sessions"] == [], what="no sessions in the registry")
    assert not one.containers()


NO_AGENT = """
from pathlib import Path
from types import SimpleNamespace
from autoforward.lanes import agent_install
agent_install.resources = SimpleNamespace(files=lambda _package: Path("/nowhere"))
"""


def test_an_installation_without_the_agent_is_said(service: Services, run: Runner, home: Path, project: str) -> None:
    """Connections over a shell lane are slow: `attach` warns for each service that has one for this reason, `forward` too."""
    begin_supervisor(home, NO_AGENT)
    app, db = service("app"), service("db")
    warned = run("autoforward", "attach", f"{project}/*", check=0).stderr
    for one in (app, db):
        lane = re.search(rf"warning: connections of {one.name} go over the slower lane socat: .*", warned)
        assert lane is not None, warned
        assert lane[0].endswith("not the agent, because the agent was not built for amd64 containers")
    server = db.start_server(port=free_port())
    said = run("autoforward", "forward", "--detach", db.name, str(server.port), check=0).stderr
    assert f"connections of {db.name} go over the slower lane socat: " in said
    assert text_of(row_of(run, server.port, status="active")) == "hello"


def test_a_lane_that_was_asked_for_is_no_warning(service: Services, run: Runner, project: str) -> None:
    service("app")
    assert "warning" not in run("autoforward", "attach", "--lane", "socat", f"{project}/*", check=0).stderr


def test_projects_of_one_name_in_two_folders_are_two(
    container: ContainerFactory, run: Runner, home: Path, project: str
) -> None:
    """They may run at once: each service has its session and its numbers."""
    port, found = free_port(), {}
    for folder in ("/src/a", "/src/b"):
        labels = {"project": project, "project.working_dir": folder, "service": "web", "container-number": "1"}
        app = container(labels={f"com.docker.compose.{key}": value for key, value in labels.items()})
        app.start_server(port=port, text=folder)
        run("autoforward", "attach", app.name, check=0)
        found[folder] = row_of(run, port, app.name, status="active")
    assert {folder: text_of(row) for folder, row in found.items()} == {"/src/a": "/src/a", "/src/b": "/src/b"}
    identities = {entry["identity"].partition("|")[2] for entry in registry(home)["entries"]}
    assert identities == {f"compose:{project} in {folder}/web#1" for folder in found}

"""Labels that an image brings: whose session, whose host port, and whose volume they do not get. On a real engine."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import BuildError, NotFound

from tests.conftest import ContainerFactory, Runner
from tests.support.containers import LABEL, Container, eventually, fetch, run_id
from tests.support.observing import Command, Row, free_port, new_folder, registry, row_of, rows, status_json

pytestmark = pytest.mark.docker

WAIT_S = 60.0

Labels = Mapping[str, str]
Foreign = Callable[..., Container]


@pytest.fixture
def foreign(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Foreign]:
    """A factory of containers whose image has labels; `labels` are those that it is started with."""
    made: list[Container] = []
    tags: list[str] = []

    def make(claims: Labels, labels: Labels | None = None) -> Container:
        tag = f"autoforward-test/foreign-{uuid.uuid4().hex[:8]}"
        words = label_words(claims)
        text = f"FROM {images['full']}\n{f'LABEL {words}' if words else 'ENV FOREIGN=1'}\n"
        engine.images.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True)
        tags.append(tag)
        own = {**(labels or {}), LABEL: run_id()}
        raw = engine.containers.create(tag, ["sleep", "infinity"], labels=own, name=f"af-{uuid.uuid4().hex[:10]}")
        made.append(Container(engine, raw, "full"))
        raw.start()
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.remove()
        for tag in tags:
            with contextlib.suppress(NotFound):
                engine.images.remove(tag, force=True)


def label_words(labels: Labels) -> str:
    """As a Dockerfile has them."""
    return " ".join(f"{json.dumps(key)}={json.dumps(text)}" for key, text in labels.items())


def shop_labels(folder: str) -> dict[str, str]:
    return {
        "devcontainer.local_folder": folder,
        "devcontainer.config_file": f"{folder}/.devcontainer/devcontainer.json",
    }


def compose_labels(project: str, service: str, **more: str) -> dict[str, str]:
    labels = {"project": project, "service": service, **more}
    return {f"com.docker.compose.{name}": text for name, text in labels.items()}


def text_of(row: Row) -> str:
    return fetch(f"http://127.0.0.1:{row['localPort']}/").strip()


def by_container(run: Runner, port: int) -> dict[str, Row]:
    return {row["containerName"]: row for row in rows(run) if row["port"] == port}


def sessions(home: Path) -> dict[str, Row]:
    return {one["container_name"]: one for one in registry(home)["sessions"]}


# -- sessions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "service"])
def test_image_that_claims_the_shop_gets_a_session_of_its_own(
    foreign: Foreign, container: ContainerFactory, run: Runner, home: Path, kind: str
) -> None:
    folder = new_folder()
    labels = shop_labels(folder) if kind == "folder" else compose_labels(f"shop{uuid.uuid4().hex[:6]}", "web")
    shop, evil = container(labels=labels), foreign(labels)
    port = shop.start_server(port=free_port(), text="shop").port
    evil.start_server(port=port, text="evil")
    run("autoforward", "attach", shop.name, check=0)
    before = row_of(run, port, status="active")
    run("autoforward", "attach", evil.name, check=0)
    found = by_container(run, port)
    assert {name: text_of(row) for name, row in found.items()} == {shop.name: "shop", evil.name: "evil"}
    assert found[shop.name]["localPort"] == before["localPort"]
    assert (found[evil.name]["workspaceFolder"], found[evil.name]["service"]) == (None, None)
    assert sessions(home)[evil.name]["identity"]["anchor"] == f"name:{evil.name}"

    # While the shop is stopped its session and its number are the shop's, too.
    shop.stop()
    eventually(lambda: by_container(run, port)[shop.name]["status"] == "reconnecting", timeout_s=WAIT_S)
    run("autoforward", "attach", evil.name, check=0)
    assert set(sessions(home)) == {shop.name, evil.name}
    shop.start()
    shop.start_server(port=port, text="shop")
    assert text_of(row_of(run, port, shop.name, status="active", timeout_s=WAIT_S)) == "shop"
    assert by_container(run, port)[shop.name]["localPort"] == before["localPort"]


def test_claims_of_an_image_are_no_target(
    foreign: Foreign, container: ContainerFactory, run: Runner, tmp_path: Path
) -> None:
    (tmp_path / ".devcontainer.json").write_text("{}")
    project = f"shop{uuid.uuid4().hex[:6]}"
    evil = foreign({**shop_labels(str(tmp_path)), **compose_labels(project, "web")})
    done = run("autoforward", "attach", str(tmp_path))
    assert done.returncode == 4
    assert f"container {evil.name} has that label from its image, which does not count" in done.stderr
    for target in (f"{project}/web", f"{project}/*"):
        assert run("autoforward", "attach", target).returncode == 4
    shop = container(labels=compose_labels(project, "web"))
    run("autoforward", "attach", f"{project}/*", check=0)
    run("autoforward", "attach", evil.name, check=0)
    run("autoforward", "detach", f"{project}/*", check=0)
    status = status_json(run)
    assert [one["container_name"] for one in status["sessions"]] == [evil.name], f"{shop.name} alone was meant"


def test_claims_of_an_image_do_not_count_under_watch(
    foreign: Foreign, container: ContainerFactory, run: Runner, home: Path
) -> None:
    """The shop is stopped meanwhile: another container with its labels, of an image, comes up beside it."""
    mark = {"autoforward.watched": uuid.uuid4().hex[:8]}
    [(key, value)] = mark.items()
    shop = container(labels={**shop_labels(new_folder()), **mark})
    port = shop.start_server(port=free_port(), text="shop").port
    with Command(home, "autoforward", "watch", "--label", f"{key}={value}") as command:
        before = row_of(run, port, status="active", timeout_s=WAIT_S)
        shop.stop()
        eventually(lambda: by_container(run, port)[shop.name]["status"] == "reconnecting", timeout_s=WAIT_S)
        evil = foreign({k: v for k, v in shop.raw.labels.items() if k != key}, mark)
        evil.start_server(port=port, text="evil")
        eventually(lambda: evil.name in by_container(run, port), timeout_s=WAIT_S)
        marked = foreign(mark)
        line = command.wait_line(lambda line: line.startswith("autoforward: warning: " + marked.name), timeout_s=WAIT_S)
        assert "is not attached to" in line
        assert "labels of its image" in line
        found = by_container(run, port)
        assert (found[shop.name]["localPort"], found[shop.name]["status"]) == (before["localPort"], "reconnecting")
        assert found[evil.name]["localPort"] != before["localPort"]
        assert set(sessions(home)) == {shop.name, evil.name}
        shop.start()
        shop.start_server(port=port, text="shop")
        assert text_of(row_of(run, port, shop.name, status="active", timeout_s=WAIT_S)) == "shop"
        assert by_container(run, port)[shop.name]["localPort"] == before["localPort"]
        command.signal(signal.SIGINT)
        assert command.wait(timeout_s=WAIT_S) == 0


def test_container_whose_image_is_gone_has_its_name_alone(
    foreign: Foreign, engine: docker.DockerClient, run: Runner, home: Path
) -> None:
    labels = shop_labels(new_folder())
    one = foreign({}, labels)
    one.stop()
    engine.images.remove(one.raw.attrs["Image"], force=True)
    one.start()
    run("autoforward", "attach", one.name, check=0)
    assert sessions(home)[one.name]["identity"]["anchor"] == f"name:{one.name}"


def test_second_container_of_an_identity_is_refused_or_replaces(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    folder = new_folder()
    first, second = container(labels=shop_labels(folder)), container(labels=shop_labels(folder))
    port = first.start_server(port=free_port(), text="first").port
    second.start_server(port=port, text="second")
    run("autoforward", "attach", first.name, check=0)
    before = row_of(run, port, status="active")
    for command in (["attach", second.name], ["forward", "-d", second.name, str(port)]):
        done = run("autoforward", *command, check=1)
        assert f"{first.name} is the dev container of {folder} already" in done.stderr
        assert f"`autoforward attach --replace {second.name}`" in done.stderr
        assert text_of(row_of(run, port, first.name, status="active")) == "first"
    assert set(sessions(home)) == {first.name}

    done = run("autoforward", "attach", "--replace", second.name, check=0)
    assert f"{second.name} takes over the session of {first.name}, which is running" in done.stderr
    row = row_of(run, port, status="active")
    assert (row["containerName"], row["localPort"], text_of(row)) == (second.name, before["localPort"], "second")
    assert set(sessions(home)) == {second.name}

    # From a stopped one it takes no flag, and is said.
    second.stop()
    eventually(lambda: row_of(run, port)["status"] == "reconnecting", timeout_s=WAIT_S)
    done = run("autoforward", "forward", "-d", first.name, str(port), check=1)
    assert f"{second.name} is the dev container of {folder} already" in done.stderr
    done = run("autoforward", "attach", first.name, check=0)
    assert f"{first.name} takes over the session of {second.name}, which is stopped" in done.stderr
    row = row_of(run, port, status="active")
    assert (row["containerName"], row["localPort"], text_of(row)) == (first.name, before["localPort"], "first")

    # And once it is removed, nothing at all.
    first.remove()
    second.start()
    second.start_server(port=port, text="again")
    done = run("autoforward", "attach", second.name, check=0)
    assert "takes over" not in done.stderr
    row = row_of(run, port, status="active")
    assert (row["containerName"], row["localPort"], text_of(row)) == (second.name, before["localPort"], "again")


def test_rebuild_under_watch_waits_until_the_old_one_is_removed(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    mark = {"autoforward.watched": uuid.uuid4().hex[:8]}
    labels = {**shop_labels(new_folder()), **mark}
    old = container(labels=labels)
    port = old.start_server(port=free_port(), text="old").port
    [(key, value)] = mark.items()
    with Command(home, "autoforward", "watch", "--label", f"{key}={value}") as command:
        before = row_of(run, port, status="active", timeout_s=WAIT_S)
        old.stop()
        new = container(labels=labels)
        new.start_server(port=port, text="new")
        command.wait_line(
            lambda line: f"{new.name} is not attached to: {old.name} is the dev" in line, timeout_s=WAIT_S
        )
        assert set(sessions(home)) == {old.name}
        assert row_of(run, port)["localPort"] == before["localPort"]
        old.remove()
        row = row_of(run, port, new.name, status="active", timeout_s=WAIT_S)
        assert (row["localPort"], text_of(row)) == (before["localPort"], "new")
        assert sum("is not attached to" in line for line in command.lines) == 1, "said once"
        command.signal(signal.SIGINT)
        assert command.wait(timeout_s=WAIT_S) == 0


def test_service_of_a_project_waits_until_the_one_before_it_is_removed(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    project = f"shop{uuid.uuid4().hex[:6]}"

    def service(name: str) -> Container:
        return container(labels=compose_labels(project, name, **{"container-number": "1"}))

    service("app")
    old = service("db")
    port = old.start_server(port=free_port(), text="old").port
    run("autoforward", "attach", f"{project}/*", check=0)
    before = row_of(run, port, status="active")
    old.stop()
    new = service("db")
    new.start_server(port=port, text="new")
    log = home / "supervisor.log"
    eventually(
        lambda: f"{new.name} is not attached to: {old.name} is {project}/db#1" in log.read_text(), timeout_s=WAIT_S
    )
    assert old.name in sessions(home)
    old.remove()
    row = row_of(run, port, status="active", timeout_s=WAIT_S)
    assert (row["containerName"], row["localPort"], text_of(row)) == (new.name, before["localPort"], "new")


# -- devdown ---------------------------------------------------------------------------------------


@pytest.fixture
def bank(container: ContainerFactory, engine: docker.DockerClient) -> Iterator[tuple[str, Container, Any, Any]]:
    """Another project as compose makes it: its name, a container, a network and a volume with something in it."""
    project = f"bank{uuid.uuid4().hex[:6]}"
    labels = {"com.docker.compose.project": project, LABEL: run_id()}
    network = engine.networks.create(f"{project}_default", labels=labels)
    volume = engine.volumes.create(f"{project}_data", labels=labels)
    mine = compose_labels(project, "db", **{"container-number": "1", "project.working_dir": "/home/someone/bank"})
    one = container(labels=mine, network=network.name, volumes=[f"{volume.name}:/data"])
    try:
        yield project, one, network, volume
    finally:
        one.remove()
        for thing in (network, volume):
            with contextlib.suppress(NotFound):
                thing.remove()


def is_untouched(bank: tuple[str, Container, Any, Any]) -> None:
    """Raises NotFound where something is gone."""
    _project, one, network, volume = bank
    one.raw.reload()
    network.reload()
    volume.reload()


def test_devdown_leaves_the_project_that_an_image_claims(
    foreign: Foreign, run: Runner, tmp_path: Path, bank: tuple[str, Container, Any, Any]
) -> None:
    """The user's own plain dev container, of an image that says that it is of the bank's project."""
    project, other, _network, volume = bank
    dev = foreign(compose_labels(project, "db"), {"devcontainer.local_folder": str(tmp_path)})
    done = run("devdown", "--workspace-folder", str(tmp_path), "--timeout", "0", "--remove", "--volumes", check=0)
    assert f"removing container {dev.name}\n" in done.stderr
    with pytest.raises(NotFound):
        dev.raw.reload()
    is_untouched(bank)
    assert other.raw.status == "running"
    assert volume.name not in done.stderr


def test_devdown_leaves_the_container_whose_image_claims_the_folder(
    foreign: Foreign, run: Runner, tmp_path: Path
) -> None:
    evil = foreign({"devcontainer.local_folder": str(tmp_path)})
    done = run("devdown", "--workspace-folder", str(tmp_path), "--timeout", "0", "--remove", check=0)
    assert f"nothing to stop: no dev container of {tmp_path}" in done.stderr
    assert f"left alone: container {evil.name} has that label from its image" in done.stderr
    evil.raw.reload()
    assert evil.raw.status == "running"


def test_devdown_leaves_what_a_failed_build_left(
    engine: docker.DockerClient,
    images: Mapping[str, str],
    run: Runner,
    tmp_path: Path,
    bank: tuple[str, Container, Any, Any],
) -> None:
    """The step that sets a label is a container that has it, of an image that has it not."""
    claims = {"devcontainer.local_folder": str(tmp_path), **compose_labels(bank[0], "db", **{"config-hash": "1f"})}
    text = f"FROM {images['full']}\nLABEL {label_words(claims)}\nRUN false\n"
    with pytest.raises(BuildError):
        engine.images.build(fileobj=io.BytesIO(text.encode()))
    label = {"label": f"devcontainer.local_folder={tmp_path}"}
    left = engine.containers.list(all=True, filters=label)
    try:
        assert any(one.status == "created" for one in left), "or this test shows nothing"
        done = run("devdown", "--workspace-folder", str(tmp_path), "--remove", "--volumes", check=0)
        assert "nothing to stop" in done.stderr
        is_untouched(bank)
        assert len(engine.containers.list(all=True, filters=label)) == len(left)
    finally:
        for one in left:
            one.remove(force=True)


def test_devdown_of_a_project_with_anothers_name_leaves_that_other(
    container: ContainerFactory, run: Runner, tmp_path: Path, bank: tuple[str, Container, Any, Any]
) -> None:
    """`name: bank` in the workspace's compose file: compose makes it in the bank's network, with the bank's volume."""
    project, other, network, volume = bank
    mine = compose_labels(project, "app", **{"container-number": "1", "project.working_dir": str(tmp_path)})
    labels = {**mine, "devcontainer.local_folder": str(tmp_path)}
    dev = container(labels=labels, network=network.name, volumes=[f"{volume.name}:/data"])
    other.stop()
    done = run("devdown", "--workspace-folder", str(tmp_path), "--timeout", "0", "--remove", "--volumes", check=0)
    with pytest.raises(NotFound):
        dev.raw.reload()
    is_untouched(bank)
    assert f"left alone: container {other.name}: its project {project} belongs to /home/someone/bank" in done.stderr
    for what in (f"network {network.name}", f"volume {volume.name}"):
        assert f"left alone: {what}: container {other.name} uses it" in done.stderr
    other.start()


# -- compose itself --------------------------------------------------------------------------------


class Project:
    """A compose project of two services, `built` from a Dockerfile and `pulled` from an image, with a volume."""

    def __init__(self, folder: Path, image: str, client: docker.DockerClient) -> None:
        self.name = f"af{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self._client = client
        labels = {LABEL: run_id()}
        common = {"command": ["sleep", "infinity"], "init": True, "labels": labels}
        # What newer versions of compose write into images that they build, this one is told to.
        into_image = compose_labels(self.name, "built", version="2.39.0")
        dev = {"devcontainer.local_folder": str(folder)}
        text = {
            "name": self.name,
            "services": {
                "built": {**common, "build": {"context": ".", "labels": into_image}, "labels": {**labels, **dev}},
                "pulled": {**common, "image": image, "pull_policy": "never", "volumes": ["data:/data"]},
            },
            "volumes": {"data": {"labels": labels}},
            "networks": {"default": {"labels": labels}},
        }
        (folder / "Dockerfile").write_text(f"FROM {image}\nENV BUILT_BY=compose\n")
        (folder / "compose.yaml").write_text(json.dumps(text))  # JSON is YAML

    def compose(self, *args: str) -> str:
        done = subprocess.run(
            ["docker", "compose", *args],
            cwd=self._folder,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def service(self, name: str) -> Container:
        return Container(self._client, self._client.containers.get(f"{self.name}-{name}-1"), "full")


@pytest.fixture
def project(
    compose_command: str, images: Mapping[str, str], engine: docker.DockerClient, tmp_path: Path
) -> Iterator[Project]:
    one = Project(tmp_path, images["full"], engine)
    try:
        one.compose("up", "-d")
        yield one
    finally:
        one.compose("down", "--volumes", "--remove-orphans", "--timeout", "0", "--rmi", "local")


def test_services_that_compose_builds_and_those_of_images_are_its_projects(
    project: Project, foreign: Foreign, engine: docker.DockerClient, run: Runner, home: Path, tmp_path: Path
) -> None:
    built, pulled = project.service("built"), project.service("pulled")
    of_image = engine.images.get(built.raw.attrs["Image"]).labels
    assert of_image["com.docker.compose.project"] == project.name, "or this test shows nothing"
    evil = foreign({k: v for k, v in built.raw.labels.items() if k != LABEL})
    port = built.start_server(port=free_port(), text="built").port
    for one, text in ((pulled, "pulled"), (evil, "evil")):
        one.start_server(port=port, text=text)
    run("autoforward", "attach", f"{project.name}/*", check=0)
    found = by_container(run, port)
    assert {name: (text_of(row), row["service"]) for name, row in found.items()} == {
        built.name: ("built", "built"),
        pulled.name: ("pulled", "pulled"),
    }
    assert sessions(home)[built.name]["workspace"] == str(tmp_path)

    # What `docker compose run` starts is no instance of its service, and takes nothing from it.
    job = Container(engine, engine.containers.get(project.compose("run", "-d", "pulled").strip()), "full")
    job.start_server(port=port, text="job")
    run("autoforward", "attach", job.name, check=0)
    after = by_container(run, port)
    assert {name: text_of(row) for name, row in after.items()} == {
        built.name: "built",
        pulled.name: "pulled",
        job.name: "job",
    }
    assert {name: after[name]["localPort"] for name in found} == {name: row["localPort"] for name, row in found.items()}

    done = run("devdown", "--workspace-folder", str(tmp_path), "--timeout", "0", "--remove", "--volumes", check=0)
    parts = [f"container {one.name}" for one in (built, pulled, job)]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("removing ")]
    assert {*parts, f"network {project.name}_default", f"volume {project.name}_data"} == set(
        line.removeprefix("removing ").split(", ")
    )
    for one in (built, pulled, job):
        with pytest.raises(NotFound):
            one.raw.reload()
    assert engine.volumes.list(filters={"name": f"{project.name}_data"}) == []
    assert engine.networks.list(names=[f"{project.name}_default"]) == []
    evil.raw.reload()
    assert evil.raw.status == "running"

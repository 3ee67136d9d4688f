"""Docker contexts, made and chosen by the docker command: a session stays on its engine, whatever is chosen later."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Container, eventually, fetch
from tests.support.engines.ways import NO_ENGINE_NAMED
from tests.support.observing import row_of

pytestmark = pytest.mark.docker

HERE = "unix:///var/run/docker.sock"
AWAY = "unix:///nonexistent/away.sock"

Docker = Callable[..., str]


@pytest.fixture
def docker_config(tmp_path: Path) -> Mapping[str, str | None]:
    """The environment of somebody whose docker command has a configuration of its own."""
    return {**NO_ENGINE_NAMED, "DOCKER_CONFIG": str(tmp_path / "docker")}


@pytest.fixture
def docker_command(docker_config: Mapping[str, str | None], home: Path) -> Docker:
    """The docker command, for its contexts."""
    run = Runner(home, docker_config)
    return lambda *argv: run("docker", *argv, check=0).stdout


@pytest.fixture
def shell(docker_config: Mapping[str, str | None], docker_command: Docker, home: Path) -> Runner:
    """Commands of a user who has the contexts `here` and `away`, and works `here`."""
    for name, host in (("here", HERE), ("away", AWAY)):
        docker_command("context", "create", name, "--docker", f"host={host}")
    docker_command("context", "use", "here")
    return Runner(home, docker_config)


@pytest.fixture
def box(container: ContainerFactory, tmp_path: Path) -> Container:
    """A dev container of the test's folder."""
    return container("full", labels={"devcontainer.local_folder": str(tmp_path)})


def status(run: Runner) -> dict[str, str]:
    [session] = json.loads(run("autoforward", "status", "--json", check=0).stdout)["sessions"]
    return {key: session[key] for key in ("engine", "engine_source", "state")}


def test_context_chosen_later_moves_no_session(
    shell: Runner, docker_command: Docker, box: Container, home: Path, tmp_path: Path
) -> None:
    first = box.start_server("http", text="first")
    shell("autoforward", "attach", box.name, check=0)
    was = status(shell)
    assert was == {"engine": HERE, "engine_source": "context here (the current docker context)", "state": "watching"}
    host_port = row_of(shell, first.port, status="active")["localPort"]

    docker_command("context", "use", "away")
    second = box.start_server("http", text="second")
    assert fetch(f"http://127.0.0.1:{row_of(shell, second.port, status='active')['localPort']}/") == "second\n"
    assert status(shell) == was
    # What is begun now is begun there, and that nobody answers there is said with its name.
    begun = shell("autoforward", "attach", "another")
    assert begun.returncode == 3
    assert AWAY in begun.stderr
    assert "context away" in begun.stderr

    # A supervisor that is started from such a shell has the session's engine too, and its ports.
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    eventually(lambda: status(shell) == was, timeout_s=30)
    assert row_of(shell, first.port, status="active")["localPort"] == host_port
    assert fetch(f"http://127.0.0.1:{host_port}/") == "first\n"

    down = shell("devdown", "--workspace-folder", str(tmp_path), "--timeout", "1", check=0)
    assert f"stopped container {box.name}" in down.stderr
    box.raw.reload()
    assert box.raw.status == "exited"


def test_devdown_all_takes_every_session_where_it_is(shell: Runner, docker_command: Docker, box: Container) -> None:
    shell("autoforward", "attach", box.name, check=0)
    docker_command("context", "use", "away")
    done = shell("devdown", "--all", "--timeout", "1", check=0)
    assert f"stopped container {box.name}" in done.stderr


def test_a_flag_of_devdown_says_where_to_look(shell: Runner, box: Container, tmp_path: Path) -> None:
    shell("autoforward", "attach", box.name, check=0)
    done = shell("devdown", "--workspace-folder", str(tmp_path), "--context", "away")
    assert done.returncode == 3
    assert AWAY in done.stderr
    box.raw.reload()
    assert box.raw.status == "running"


def test_doctor_knows_the_context(shell: Runner) -> None:
    def engine(*flags: str, **env: str) -> dict[str, str]:
        findings = json.loads(shell("autoforward", "doctor", "--json", *flags, env=env).stdout)
        return next(one for one in findings if one["id"] == "engine")

    assert engine()["status"] == "ok"
    assert f"{HERE} (from context here (the current docker context))" in engine()["text"]
    away = engine("--context", "away")
    assert away["status"] == "fail"
    assert f"{AWAY} (from context away (--context))" in away["text"]
    gone = engine(DOCKER_CONTEXT="gone")
    assert gone["status"] == "fail"
    assert "no docker context is called 'gone' (DOCKER_CONTEXT)" in gone["text"]

"""Fixtures for what a devcontainer CLI brings up: both CLIs, and workspaces of every kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docker
import pytest

from tests.support.containers import LABEL, Container, run_id
from tests.support.engine_proxy import EngineProxy, is_reachable

REPOSITORY_DIR = Path(__file__).resolve().parents[2]
NODE_CLI_VARIABLE = "AUTOFORWARD_TEST_NODE_CLI"

Kind = Literal["image", "dockerfile", "compose"]

# Stands between devup and the CLI, and keeps what the CLI printed.
_RECORDER = """#!{python}
import subprocess, sys
done = subprocess.run([{cli!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
if sys.argv[1] == "up":
    with open({record!r}, "wb") as file:
        file.write(done.stdout)
sys.stdout.buffer.write(done.stdout)
sys.exit(done.returncode)
"""


def _node_cli() -> str | None:
    named = os.environ.get(NODE_CLI_VARIABLE)
    beside = REPOSITORY_DIR / ".cache/npm/node_modules/.bin/devcontainer"
    return named or (str(beside) if beside.exists() else None)


@dataclass(frozen=True)
class RecordedCli:
    """One of the two CLIs. `path` runs it and keeps the bytes that its last `up` printed."""

    name: str
    path: str
    record: Path

    def up(self, workspace: Workspace) -> None:
        """Run the plain CLI, without devup."""
        subprocess.run([self.path, "up", *workspace.up_args], check=True, capture_output=True, timeout=100)

    def printed(self) -> bytes:
        return self.record.read_bytes()


@pytest.fixture(params=["devcontainer-rs", "node"])
def cli(request: pytest.FixtureRequest, tmp_path: Path) -> RecordedCli:
    """Both CLIs, one after the other."""
    if request.param == "node":
        real = _node_cli()
        reason = (
            f"no official devcontainer CLI: `python3 -m scripts.engine devcontainers-cli`, or set {NODE_CLI_VARIABLE}"
        )
    else:
        beside = Path(sys.executable).with_name("devcontainer")
        real = str(beside) if beside.exists() else None
        reason = "no devcontainer-rs: pip install 'autoforward[devcontainer]'"
    if real is None or shutil.which(real) is None:
        pytest.skip(reason)
    recorder, record = tmp_path / f"devcontainer-{request.param}", tmp_path / "printed"
    recorder.write_text(_RECORDER.format(python=sys.executable, cli=real, record=str(record)))
    recorder.chmod(0o755)
    return RecordedCli(request.param, str(recorder), record)


@dataclass(frozen=True)
class Workspace:
    """A folder with a devcontainer.json of one kind."""

    folder: Path
    kind: Kind
    client: docker.DockerClient

    @property
    def up_args(self) -> list[str]:
        # Without a registry there is no BuildKit frontend to fetch.
        return ["--workspace-folder", str(self.folder), "--buildkit", "never"]

    def write(self, config: Mapping[str, Any]) -> None:
        (self.folder / ".devcontainer" / "devcontainer.json").write_text("// written by a test\n" + json.dumps(config))

    def containers(self, *, running: bool = True) -> list[Container]:
        """The dev container, and the other services of its project after it."""
        primary = self._labelled(f"devcontainer.local_folder={self.folder}", running)
        projects = {raw.labels.get("com.docker.compose.project") for raw in primary} - {None}
        siblings = [
            raw for project in projects for raw in self._labelled(f"com.docker.compose.project={project}", running)
        ]
        raws = {raw.id: raw for raw in (*primary, *siblings)}
        return [Container(self.client, raw, "full") for raw in raws.values()]

    @property
    def container(self) -> Container:
        return self.containers()[0]

    def _labelled(self, label: str, running: bool) -> list[Any]:
        return list(self.client.containers.list(all=not running, filters={"label": label}))


WorkspaceFactory = Callable[..., Workspace]


@pytest.fixture
def workspace(
    engine: docker.DockerClient, images: Mapping[str, str], tmp_path: Path, home: Path, request: pytest.FixtureRequest
) -> Iterator[WorkspaceFactory]:
    """A factory of workspaces; what a CLI made of them is removed after the test.

    Before the home is: the `docker run` that a CLI leaves behind ends with its container, and ignores TERM.
    """
    assert home.is_dir()
    made: list[Workspace] = []

    def make(kind: Kind = "image", image: str = "full", **config: Any) -> Workspace:
        # The folder's name is the compose project's and part of what images are called: nobody else's.
        folder = (tmp_path / f"ws-{uuid.uuid4().hex[:8]}").resolve()
        (folder / ".devcontainer").mkdir(parents=True)
        label = {"--label": f"{LABEL}={run_id()}"}
        base: dict[str, Any] = {"updateRemoteUserUID": False}
        if kind == "image":
            base |= {"image": images[image], "runArgs": [part for pair in label.items() for part in pair]}
        elif kind == "dockerfile":
            # Beside the folder of the configuration, so that a wrong base of relative paths shows.
            (folder / "Dockerfile").write_text(f"FROM {images[image]}\nENV BUILT_BY=test\n")
            base |= {
                "build": {"dockerfile": "../Dockerfile", "context": ".."},
                "runArgs": [part for pair in label.items() for part in pair],
            }
        else:
            request.getfixturevalue("compose_command")
            _write_compose(folder, images[image])
            base |= {
                "dockerComposeFile": "../compose.yaml",
                "service": "app",
                "workspaceFolder": "/",
            }
        one = Workspace(folder, kind, engine)
        one.write(base | config)
        made.append(one)
        return one

    try:
        yield make
    finally:
        for one in made:
            _clean_up(one)


def _write_compose(folder: Path, image: str) -> None:
    def service(*command: str) -> dict[str, Any]:
        return {
            "image": image,
            "command": list(command),
            "init": True,
            "pull_policy": "never",
            "labels": {LABEL: run_id()},
        }

    server = ("python3", "/opt/autoforward-test/server.py", "closes-first", "--bind", "0.0.0.0")
    text = {
        "services": {
            "app": service("sleep", "infinity"),
            "db": service(*server, "--port", "5432", "--text", "hello from db"),
        },
        "networks": {"default": {"labels": {LABEL: run_id()}}},
    }
    (folder / "compose.yaml").write_text(json.dumps(text))  # JSON is YAML


def _clean_up(workspace: Workspace) -> None:
    containers = workspace.containers(running=False)
    projects = {one.raw.labels.get("com.docker.compose.project") for one in containers} - {None}
    for one in containers:
        one.remove()
    for project in projects:
        label = {"label": f"com.docker.compose.project={project}"}
        for network in workspace.client.networks.list(filters=label):
            network.remove()
    for image in workspace.client.api.images():  # one request; `images.list` inspects each
        for tag in image["RepoTags"] or ():
            if workspace.folder.name in tag:
                workspace.client.images.remove(tag, force=True)


@pytest.fixture
def proxy(home: Path) -> Iterator[EngineProxy]:
    """Between the commands and the engine."""
    if not is_reachable():
        pytest.skip("the engine is not on the default socket")
    proxy = EngineProxy(home / "engine")
    yield proxy
    proxy.close()

"""`devdown` over a scripted engine: what ends, what is stopped, in which order, and what is left alone."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from docker.errors import NotFound

from autoforward.cli import devdown
from autoforward.cli.console import supervisor_client
from autoforward.cli.devdown import DevdownRequest, stored_sessions, take_down_all, take_down_workspace
from autoforward.core.errors import EngineUnreachableError, TargetError, UsageError
from autoforward.core.model import ContainerInfo, EngineEndpoint

pytestmark = pytest.mark.unit

CONFIG_FILE = "devcontainer.config_file"
LOCAL_FOLDER = "devcontainer.local_folder"
PROJECT = "com.docker.compose.project"
WORKING_DIR = "com.docker.compose.project.working_dir"


Row = dict[str, Any]


class FakeEngine:
    """Engine, client and API in one; `log` is what was asked of it, in order.

    `claims` are containers that the engine finds by any label: their images have it. `strangers`: who else uses what.
    """

    def __init__(self, containers: list[ContainerInfo], log: list[str]) -> None:
        self.endpoint = EngineEndpoint("unix:///nowhere", "a test")
        self.infos = containers
        self.log = log
        self.unreachable = False
        self.gone: set[str] = set()
        self.client = self
        self.api = self
        self.claims: list[ContainerInfo] = []
        self.strangers: dict[str, str] = {}
        self.folder = "/"
        self.made: str | None = "2025-11-27T23:59:58Z"
        """When the volume was; the containers two seconds later."""

    def translated(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def networks(self, filters: Mapping[str, str]) -> list[Row]:
        assert filters == {"label": f"{PROJECT}=p"}
        return [{"Id": "net1", "Name": "p_default"}, {"Id": "net2", "Name": "p_unused"}]

    def volumes(self, filters: Mapping[str, str]) -> Row:
        assert filters == {"label": f"{PROJECT}=p"}
        return {"Volumes": [{"Name": "p_data", "CreatedAt": self.made}, {"Name": "p_unused"}]}

    def remove_network(self, network_id: str) -> None:
        self.log.append(f"remove network {network_id}")

    def remove_volume(self, name: str) -> None:
        self.log.append(f"remove volume {name}")

    def containers(self, all: bool, filters: Mapping[str, str]) -> list[Row]:
        assert all
        [thing] = filters.values()
        rows = [
            {"Id": one.container_id, "Names": [f"/{one.name}"], "Created": 1764288000}
            for one in self.infos
            if thing in (*one.networks, *one.volumes)
        ]
        return rows + [{"Id": "x", "Names": [f"/{name}"]} for key, name in self.strangers.items() if key == thing]

    def running(self, *, all: bool) -> list[tuple[str, dict[str, str]]]:
        """Labels of images, too: claims have all of them."""
        if self.unreachable:
            raise EngineUnreachableError("no answer")
        rows = [(one.name, one.labels) for one in self.infos]
        return rows + [(one.name, {LOCAL_FOLDER: self.folder}) for one in self.claims]

    def find_containers(self, labels: Mapping[str, str | None]) -> list[ContainerInfo]:
        return [one for one in self.find_claims(labels) if one not in self.claims]

    def find_claims(self, labels: Mapping[str, str | None]) -> list[ContainerInfo]:
        if self.unreachable:
            raise EngineUnreachableError("no answer")
        return [
            info
            for info in self.infos
            if all(k in info.labels and v in (None, info.labels[k]) for k, v in labels.items())
        ] + self.claims

    def stop(self, container_id: str, timeout: int) -> None:
        if container_id in self.gone:
            raise NotFound("gone")
        self.log.append(f"stop {container_id} {timeout}")

    def remove_container(self, container_id: str, v: bool, force: bool) -> None:
        if container_id in self.gone:
            raise NotFound("gone")
        self.log.append(f"remove {container_id} volumes={v}")

    def close(self) -> None:
        self.log.append("close")


def info(container_id: str, state: str = "running", **labels: str) -> ContainerInfo:
    return ContainerInfo(container_id, f"name-{container_id}", state, labels)


Make = Callable[..., tuple[FakeEngine, DevdownRequest]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A scene with these containers; each with a session answers `detach` with one row, the others with TargetError."""

    def scene(*containers: ContainerInfo, sessions: tuple[str, ...] = ()) -> tuple[FakeEngine, DevdownRequest]:
        log: list[str] = []
        engine = FakeEngine(list(containers), log)
        engine.folder = str(tmp_path)

        def detach(target: str | None, *, container_ids: list[str], timeout_s: float) -> dict[str, Any]:
            log.append(f"detach {','.join(container_ids)}")
            if not set(container_ids) & set(sessions):
                raise TargetError("no session")
            return {"rows": [{"containerName": "name-a", "port": 3000, "localPort": 3000}]}

        monkeypatch.setattr(devdown, "Engine", lambda endpoint: engine)
        monkeypatch.setattr(supervisor_client, "detach", detach)
        monkeypatch.setenv("AUTOFORWARD_HOME", str(tmp_path / "home"))
        if sessions:
            (tmp_path / "home").mkdir()
            rows = {"sessions": [{"container_id": container_id} for container_id in sessions]}
            (tmp_path / "home" / "registry.json").write_text(json.dumps(rows))
        return engine, DevdownRequest(engine.endpoint, str(tmp_path), timeout_s=2.5)

    return scene


Capture = pytest.CaptureFixture[str]


def test_forwards_end_before_the_container_stops(make: Make, tmp_path: Path, capsys: Capture) -> None:
    engine, request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}), sessions=("a",))
    take_down_workspace(request)
    assert engine.log == ["detach a", "stop a 3", "close"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "no longer forwarded: name-a port 3000" in err
    assert err.index("stopping container name-a") < err.index("stopped container name-a")


def test_a_container_that_nobody_forwarded_is_stopped_too(make: Make, tmp_path: Path) -> None:
    engine, request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}))
    take_down_workspace(request)
    assert "stop a 3" in engine.log


def test_a_link_to_the_folder_is_the_folder(make: Make, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    engine, request = make(
        info("a", **{LOCAL_FOLDER: str(tmp_path / "real")}), info("b", **{LOCAL_FOLDER: str(tmp_path / "link")})
    )
    take_down_workspace(replace(request, workspace_folder=str(tmp_path / "link")))
    assert {"stop a 3", "stop b 3"} <= set(engine.log)


def run_devdown(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(devdown.main, ["--workspace-folder", str(folder), "--timeout", "2.5", *args])


def test_a_folder_above_is_taken_after_a_yes_only(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    below = tmp_path / "src" / "api"
    below.mkdir(parents=True)
    engine, _request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}))
    done = run_devdown(below)
    assert done.exit_code == 2
    assert f"{below} has no dev container of its own, {tmp_path} has\n" in done.output
    assert f"hint: `devdown --workspace-folder {tmp_path}` takes that one down\n" in done.output
    assert engine.log == ["close"]

    monkeypatch.setattr(devdown, "is_answered", lambda: True)
    for answer, log in (("\n", ["close"]), ("n\n", ["close"]), ("y\n", ["close", "detach a", "stop a 3", "close"])):
        engine.log.clear()
        monkeypatch.setattr(devdown, "ask", lambda _question, answer=answer: answer)
        assert run_devdown(below).exit_code == 0
        assert engine.log == log

    # Forwards end without a question: it is said whose.
    engine.log.clear()
    assert run_devdown(below, "--forwards-only").exit_code == 0
    assert engine.log == ["close", "detach a", "close"]
    # A configuration of its own makes it a workspace, and nothing above is meant; nor is what is above the git work tree.
    (tmp_path / "src" / ".devcontainer.json").write_text("{}")
    engine.log.clear()
    assert run_devdown(tmp_path / "src").exit_code == 0
    (below / ".git").write_text("gitdir: elsewhere")
    assert run_devdown(below).exit_code == 0
    assert "stop a 3" not in engine.log


def test_of_several_configurations_one_has_to_be_chosen(make: Make, tmp_path: Path) -> None:
    files = [tmp_path / ".devcontainer" / name / "devcontainer.json" for name in ("go", "py")]
    labels = [{LOCAL_FOLDER: str(tmp_path), CONFIG_FILE: str(file)} for file in files]
    engine, request = make(info("a", **labels[0]), info("b", **labels[1]))
    with pytest.raises(UsageError, match="dev containers of several configurations") as caught:
        take_down_workspace(request)
    assert caught.value.hint == f"choose one: `devdown --config {files[0]}`"
    assert engine.log == ["close"]
    engine.log.clear()
    take_down_workspace(replace(request, config_file=str(files[1])))
    assert engine.log == ["detach b", "stop b 3", "close"]
    with pytest.raises(UsageError, match="is of the configuration"):
        take_down_workspace(replace(request, config_file="elsewhere.json"))


@pytest.mark.parametrize("state", ["exited", "created", "dead"])
def test_devdown_without_a_running_container_is_exit_0(make: Make, tmp_path: Path, capsys: Capture, state: str) -> None:
    engine, request = make(info("a", state, **{LOCAL_FOLDER: str(tmp_path)}))
    take_down_workspace(request)
    assert engine.log == ["detach a", "close"]
    assert "nothing to stop: container name-a is not running" in capsys.readouterr().err


def test_devdown_without_a_container_is_exit_0(make: Make, tmp_path: Path, capsys: Capture) -> None:
    _, request = make()
    take_down_workspace(request)
    assert f"nothing to stop: no dev container of {tmp_path}" in capsys.readouterr().err


def test_container_that_goes_away_meanwhile_is_down(make: Make, tmp_path: Path) -> None:
    engine, request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}))
    engine.gone.add("a")
    take_down_workspace(replace(request, remove=True))
    assert engine.log == ["detach a", "close"]


def test_flag_forwards_only_leaves_the_container(make: Make, tmp_path: Path) -> None:
    engine, request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}), sessions=("a",))
    take_down_workspace(replace(request, forwards_only=True))
    assert engine.log == ["detach a", "close"]


def test_forwards_end_even_where_the_engine_does_not_answer(make: Make) -> None:
    engine, request = make()
    engine.unreachable = True
    with pytest.raises(EngineUnreachableError):
        take_down_workspace(request)
    assert engine.log == ["detach ", "close"]
    take_down_workspace(replace(request, forwards_only=True))


@pytest.mark.parametrize(
    ("volumes", "removed"),
    [
        (False, ["remove network net1"]),
        (True, ["remove network net1", "remove volume p_data"]),
    ],
)
def test_a_compose_project_goes_as_a_whole(
    make: Make, tmp_path: Path, volumes: bool, removed: list[str], capsys: Capture
) -> None:
    engine, request = make(
        replace(info("app", **{LOCAL_FOLDER: str(tmp_path), PROJECT: "p"}), networks=("net1",)),
        replace(info("db", **{PROJECT: "p"}), networks=("net1",), volumes=("p_data", "anonymous")),
        info("other", **{PROJECT: "q"}),
    )
    take_down_workspace(replace(request, remove=True, volumes=volumes))
    assert engine.log[0] == "detach app,db"
    # Side by side, so in any order among themselves.
    assert sorted(engine.log[1:3]) == ["stop app 3", "stop db 3"]
    assert sorted(engine.log[3:5]) == [f"remove app volumes={volumes}", f"remove db volumes={volumes}"]
    assert engine.log[5:-1] == removed
    err = capsys.readouterr().err
    parts = ["container name-app", "container name-db", "network p_default", *(["volume p_data"] if volumes else [])]
    assert f"removing {', '.join(parts)}\n" in err
    assert ("left alone: volume p_unused: none of the containers uses it\n" in err) is volumes


@pytest.mark.parametrize("made", ["2025-11-27T20:00:00Z", "2025-11-27T23:50:00+00:00", "yesterday", None])
def test_a_volume_that_was_there_before_its_containers_stays(
    make: Make, tmp_path: Path, capsys: Capture, made: str | None
) -> None:
    """A file of the same project name in another folder mounts it: compose asks for no more than the name."""
    app = info("app", **{LOCAL_FOLDER: str(tmp_path), PROJECT: "p", WORKING_DIR: str(tmp_path)})
    engine, request = make(replace(app, volumes=("p_data",)))
    engine.made = made
    take_down_workspace(replace(request, remove=True, volumes=True))
    assert not [line for line in engine.log if line.startswith("remove volume")]
    assert "left alone: volume p_data: it was not made together with the containers" in capsys.readouterr().err


def test_networks_and_volumes_that_others_use_stay(make: Make, tmp_path: Path, capsys: Capture) -> None:
    app = info("app", **{LOCAL_FOLDER: str(tmp_path), PROJECT: "p"})
    engine, request = make(replace(app, networks=("net1",), volumes=("p_data",)))
    engine.strangers = {"net1": "shop-web", "p_data": "shop-db"}
    take_down_workspace(replace(request, remove=True, volumes=True))
    assert [line for line in engine.log if line.startswith("remove")] == ["remove app volumes=True"]
    err = capsys.readouterr().err
    assert "left alone: network p_default: container shop-web uses it" in err
    assert "left alone: volume p_data: container shop-db uses it" in err


def test_a_project_of_that_name_in_another_folder_stays(make: Make, tmp_path: Path, capsys: Capture) -> None:
    """The name comes from a file of the workspace, which may be another's."""
    mine = {PROJECT: "p", WORKING_DIR: str(tmp_path)}
    engine, request = make(
        info("app", **{LOCAL_FOLDER: str(tmp_path), **mine}),
        info("db", **mine),
        info("shop", **{PROJECT: "p", WORKING_DIR: "/home/me/shop"}),
    )
    take_down_workspace(replace(request, remove=True))
    assert not [line for line in engine.log if "shop" in line]
    assert sorted(engine.log[3:5]) == ["remove app volumes=False", "remove db volumes=False"]
    assert "left alone: container name-shop: its project p belongs to /home/me/shop" in capsys.readouterr().err


def test_container_whose_image_claims_the_folder_stays(make: Make, tmp_path: Path, capsys: Capture) -> None:
    engine, request = make(info("app", **{LOCAL_FOLDER: str(tmp_path), PROJECT: "p"}))
    engine.claims = [info("evil")]
    take_down_workspace(replace(request, remove=True))
    assert [line for line in engine.log if "evil" in line] == []
    err = capsys.readouterr().err
    assert "left alone: container name-evil has that label from its image, which does not count" in err
    assert "left alone: container name-evil: it is of project p by its image's label only" in err


@pytest.mark.parametrize("where", ["file", "label"])
def test_shutdown_action_none_leaves_it_running(make: Make, tmp_path: Path, capsys: Capture, where: str) -> None:
    labels = {LOCAL_FOLDER: str(tmp_path)}
    if where == "file":
        (tmp_path / ".devcontainer.json").write_text('{"shutdownAction": "none"}')
    else:
        labels["devcontainer.metadata"] = '[{"shutdownAction": "none"}]'
    engine, request = make(info("a", **labels), sessions=("a",))
    take_down_workspace(request)
    assert engine.log == ["detach a", "close"]
    assert "container name-a is left running" in capsys.readouterr().err


def test_a_file_broken_meanwhile_does_not_keep_it_running(make: Make, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / ".devcontainer.json").write_text("{")
    engine, request = make(info("a", **{LOCAL_FOLDER: str(tmp_path)}))
    take_down_workspace(request)
    assert "stop a 3" in engine.log
    assert re.search(r"\.devcontainer\.json:1:\d+: ", capsys.readouterr().err)


def test_devdown_all_is_every_dev_container_with_a_session(make: Make, tmp_path: Path) -> None:
    engine, request = make(
        info("a", **{LOCAL_FOLDER: "/one"}),
        info("b", **{LOCAL_FOLDER: "/two"}),
        info("plain"),
        sessions=("a", "plain"),
    )
    take_down_all(request, stored_sessions())
    assert engine.log == ["detach a", "stop a 3", "close"]


def test_devdown_all_counts_a_session_of_any_service(make: Make) -> None:
    engine, request = make(
        info("app", **{LOCAL_FOLDER: "/one", PROJECT: "p"}), info("db", **{PROJECT: "p"}), sessions=("db",)
    )
    take_down_all(request, stored_sessions())
    assert sorted(engine.log[1:3]) == ["stop app 3", "stop db 3"]


@pytest.mark.parametrize("registry", [None, "{", "[]", '{"sessions": [{}]}'])
def test_devdown_all_without_sessions_is_exit_0(
    make: Make, tmp_path: Path, capsys: Capture, registry: str | None
) -> None:
    engine, request = make(info("a", **{LOCAL_FOLDER: "/one"}))
    if registry is not None:
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "registry.json").write_text(registry)
    take_down_all(request, stored_sessions())
    assert engine.log == ["close"]
    err = capsys.readouterr().err
    assert "nothing to end" in err
    assert ("cannot be read" in err) == (registry is not None)

"""A workspace by any path to it and from below it, a project by its folder, and names that are not there. On a real engine."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.support.observing import dev_container_labels, free_port, row_of, rows

pytestmark = pytest.mark.docker


@pytest.fixture
def workspace(tmp_path: Path) -> tuple[Path, Path]:
    """A git work tree, and a link to it, which the official CLI would label."""
    real, link = tmp_path.resolve() / "shop", tmp_path.resolve() / "link"
    (real / ".git").mkdir(parents=True)
    (real / "src").mkdir()
    link.symlink_to(real)
    return real, link


def test_a_workspace_behind_a_link_by_either_path_and_from_below(
    container: ContainerFactory, run: Runner, workspace: tuple[Path, Path]
) -> None:
    real, link = workspace
    app = container(labels=dev_container_labels(str(link)))
    port = app.start_server(port=free_port(), text="shop").port
    for typed in (real / "src", real, link):
        done = run("autoforward", "attach", str(typed), check=0)
        assert (f"{real} is used: {typed} is in it" in done.stderr) == (typed == real / "src")
        for path in (real, link, real / "src", link / "src"):
            assert row_of(run, port, str(path), status="active")["containerName"] == app.name
        assert str(port) in run("autoforward", "events", "--target", str(real), check=0).stdout
        assert app.name in run("autoforward", "logs", str(link), check=0).stdout
        done = run("autoforward", "detach", str(link if typed == real else real), check=0)
        assert "Ended 1 session(s), 1 port(s)." in done.stderr
    # No session any more, and its ports are remembered: that is a place.
    assert rows(run, str(link)) == []
    assert str(port) in run("autoforward", "events", "--target", str(link), check=0).stdout

    run("autoforward", "attach", str(real), check=0)
    done = run("devdown", "--workspace-folder", str(real / "src"), "--timeout", "0")
    assert (done.returncode, f"{real} has" in done.stderr) == (2, True)
    assert row_of(run, port, status="active")
    run("devdown", "--workspace-folder", str(real), "--timeout", "0", check=0)
    app.raw.reload()
    assert app.raw.status == "exited"
    assert rows(run) == []


def test_a_project_by_its_folder_and_names_like_it(container: ContainerFactory, run: Runner, tmp_path: Path) -> None:
    name = f"shop{uuid.uuid4().hex[:6]}"
    folder = tmp_path.resolve() / name / ".devcontainer"
    folder.mkdir(parents=True)
    compose = {"project": f"{name}_devcontainer", "container-number": "1", "project.working_dir": str(folder)}
    labels = {f"com.docker.compose.{key}": value for key, value in compose.items()}
    made = {service: container(labels={**labels, "com.docker.compose.service": service}) for service in ("api", "db")}
    port = made["db"].start_server(port=free_port(), text="db").port
    done = run("autoforward", "attach", f"{name}/*", check=0)
    assert f"{name} is compose project {name}_devcontainer of {folder}" in done.stderr
    for target in (f"{name}/*", f"{name}/db", f"{name}_devcontainer/db", str(folder)):
        assert row_of(run, port, target, status="active"), target
    assert rows(run, f"{name}/api") == [], "a place that is known, without a port"
    wrong = f"{name}/dv"
    for command in (("attach",), ("forward",), ("list",), ("stop",), ("logs",)):
        done = run("autoforward", *command, wrong, *(["80"] if command == ("forward",) else []))
        assert done.returncode == 4, command
        assert "hint: did you mean" in done.stderr, command
        assert f"{name}_devcontainer/db" in done.stderr, command
    assert run("autoforward", "doctor", wrong).returncode == 4
    done = run("autoforward", "detach", wrong, check=0)
    assert f"no session is called {wrong}; did you mean" in done.stderr
    run("autoforward", "detach", f"{name}/*", check=0)
    assert rows(run) == []

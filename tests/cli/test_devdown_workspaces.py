"""`devdown` on a real engine: after `devup`, after the plain CLI, of a compose project, twice in a row."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_devup_workspaces import devup, free_port, rows
from tests.conftest import Runner
from tests.support.containers import eventually, is_refused
from tests.support.workspaces import Kind, RecordedCli, Workspace, WorkspaceFactory

pytestmark = pytest.mark.docker


def devdown(run: Runner, workspace: Workspace, *args: str) -> subprocess.CompletedProcess[str]:
    done = run("devdown", "--workspace-folder", str(workspace.folder), "--timeout", "1", *args, check=0)
    assert done.stdout == ""
    return done


@pytest.mark.parametrize("kind", ["image", "compose"])
def test_no_listener_no_bound_lease_no_running_container(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path, kind: Kind
) -> None:
    port = free_port()
    one = workspace(kind, forwardPorts=[port])
    assert devup(run, cli, one).returncode == 0
    one.container.start_server(bind="127.0.0.1", port=port)
    [row] = rows(run)
    devdown(run, one)
    assert is_refused("127.0.0.1", row["localPort"])
    assert is_refused("::1", row["localPort"])
    assert one.containers() == []
    assert one.containers(running=False)
    registry = json.loads((home / "registry.json").read_text())
    assert {entry["state"] for entry in registry["entries"]} <= {"reserved"}
    assert registry["sessions"] == []
    # Again, with nothing left to do.
    assert "nothing to stop" in devdown(run, one).stderr


@pytest.mark.parametrize("kind", ["image", "compose"])
def test_container_of_the_plain_cli_is_removed(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path, kind: Kind
) -> None:
    one = workspace(kind)
    cli.up(one)
    projects = {c.raw.labels.get("com.docker.compose.project") for c in one.containers()} - {None}
    devdown(run, one, "--remove")
    assert one.containers(running=False) == []
    for project in projects:
        label = {"label": f"com.docker.compose.project={project}"}
        assert one.client.containers.list(all=True, filters=label) == []
        assert one.client.networks.list(filters=label) == []
    assert "nothing to stop" in devdown(run, one, "--remove").stderr
    # Taking down starts nothing of ours.
    assert not (home / "supervisor.json").exists()


def test_shutdown_action_none_leaves_the_container_and_ends_the_forwards(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    port = free_port()
    one = workspace(forwardPorts=[port], shutdownAction="none")
    assert devup(run, cli, one).returncode == 0
    [row] = rows(run)
    one.container.start_server(bind="127.0.0.1", port=port)
    assert "left running" in devdown(run, one).stderr
    assert is_refused("127.0.0.1", row["localPort"])
    assert len(one.containers()) == 1


def test_flag_forwards_only_leaves_the_container(cli: RecordedCli, workspace: WorkspaceFactory, run: Runner) -> None:
    one = workspace(forwardPorts=[free_port()])
    assert devup(run, cli, one).returncode == 0
    devdown(run, one, "--forwards-only")
    assert rows(run) == []
    assert len(one.containers()) == 1


def test_devdown_all_takes_down_what_has_a_session_and_nothing_else(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    forwarded, other = workspace(forwardPorts=[free_port()]), workspace()
    assert devup(run, cli, forwarded).returncode == 0
    cli.up(other)
    run("devdown", "--all", "--timeout", "1", check=0)
    assert forwarded.containers() == []
    assert len(other.containers()) == 1


def test_devdown_all_ends_sessions_whose_container_was_removed(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    folder = workspace(forwardPorts=[free_port()])
    assert devup(run, cli, folder).returncode == 0
    for one in folder.containers():
        one.raw.remove(force=True)

    def sessions() -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(run("autoforward", "status", "--json").stdout)["sessions"]
        return found

    eventually(lambda: sessions()[0]["state"] == "stopped", what="a session that waits for the next container")
    run("devdown", "--all")
    assert sessions() == []


def test_an_engine_that_does_not_answer_is_exit_3(run: Runner, tmp_path: Path) -> None:
    done = run("devdown", "--docker-host", f"unix://{tmp_path}/none.sock", cwd=tmp_path)
    assert done.returncode == 3
    assert "none.sock" in done.stderr


@pytest.mark.parametrize("args", [["--volumes"], ["--forwards-only", "--remove"], ["--timeout", "-1"]])
def test_bad_usage_is_exit_2(run: Runner, args: list[str]) -> None:
    done = run("devdown", *args)
    assert done.returncode == 2
    assert "error" in done.stderr

"""`devup` on a real engine, with both devcontainer CLIs."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Runner, command_env, script, supervisor_of
from tests.support.containers import assert_page, event_lines, eventually, fetch, is_refused
from tests.support.observing import rows, status_json
from tests.support.terminal import Terminal
from tests.support.workspaces import Kind, RecordedCli, Workspace, WorkspaceFactory

pytestmark = pytest.mark.docker


def free_port() -> int:
    """A number that nothing on the host uses now, in both families, and that is as good in a container."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def devup(run: Runner, cli: RecordedCli, workspace: Workspace, *args: str) -> subprocess.CompletedProcess[str]:
    return run("devup", "--auto-forward", "--devcontainer-path", cli.path, *workspace.up_args, *args, timeout_s=100)


@pytest.mark.parametrize("kind", ["image", "dockerfile", "compose"])
def test_a_declared_and_a_detected_port_answer_and_stdout_is_the_cli_s(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, kind: Kind
) -> None:
    declared, detected = free_port(), free_port()
    one = workspace(kind, forwardPorts=[declared], portsAttributes={str(declared): {"label": "web"}})
    done = devup(run, cli, one)
    assert done.returncode == 0, done.stderr
    assert done.stdout.encode() == cli.printed()
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "success"

    assert is_refused("127.0.0.1", declared)
    one.container.start_server(bind="127.0.0.1", port=declared, text="declared")
    one.container.start_server(bind="127.0.0.1", port=detected, text="detected")
    assert_page(f"http://localhost:{declared}", "declared\n")
    [row] = eventually(lambda: [r for r in rows(run) if r["port"] == detected and r["localPort"]])
    assert fetch(f"http://localhost:{row['localPort']}") == "detected\n"
    [row] = [r for r in rows(run) if r["port"] == declared]
    assert (row["label"], row["source"], row["containerId"]) == ("web", "declared", one.container.id)


def test_app_port_is_forwarded_instead_of_published(cli: RecordedCli, workspace: WorkspaceFactory, run: Runner) -> None:
    """Of a Dockerfile, whose paths stay relative to the file; of an image it is in test_real_shapes.py."""
    local, remote = free_port(), free_port()
    one = workspace("dockerfile", appPort=[f"{local}:{remote}"])
    done = devup(run, cli, one)
    assert done.returncode == 0, done.stderr
    one.container.raw.reload()
    assert not one.container.raw.attrs["HostConfig"]["PortBindings"]
    assert one.container.raw.labels["devcontainer.config_file"] == str(
        one.folder / ".devcontainer" / "devcontainer.json"
    )
    one.container.start_server(bind="127.0.0.1", port=remote, text="app")
    assert_page(f"http://localhost:{local}", "app\n")


def test_the_events_of_the_start_come_before_the_result(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    port = free_port()
    done = devup(run, cli, workspace(forwardPorts=[port]), "--ports-events", "--forward-port", "9:9999")
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.splitlines(keepends=True)
    assert last.encode() == cli.printed().splitlines(keepends=True)[-1]
    assert all(line.startswith("PORT_EVENT: ") for line in before)
    assert port in {event["port"] for event in event_lines("".join(before))}


def test_up_is_fine_where_forwarding_fails(cli: RecordedCli, workspace: WorkspaceFactory, run: Runner) -> None:
    one = workspace(image="nolane", forwardPorts=[free_port()])
    done = devup(run, cli, one, "--lane", "socat")
    assert done.returncode == 0
    assert done.stdout.encode() == cli.printed()
    assert "socat" in done.stderr


def test_a_failed_up_keeps_its_status_and_words(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path
) -> None:
    one = workspace(onCreateCommand="exit 3")
    done = devup(run, cli, one)
    assert done.returncode != 0
    assert done.stdout.encode() == cli.printed()
    assert supervisor_of(home) is None


def test_the_question_leaves_stdout_and_the_status_alone(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path, tmp_path: Path
) -> None:
    """It comes last, and Ctrl-C is a no that is remembered."""
    one = workspace(customizations={"autoforward": {"bind": "0.0.0.0"}})
    words = [script("devup"), "--auto-forward", "--devcontainer-path", cli.path, *one.up_args]
    command = f"trap : INT; {shlex.join(words)} > {tmp_path}/stdout; echo status $?"
    with Terminal(["sh", "-c", command], command_env(home, {"TERM": "xterm"}), columns=200) as terminal:
        terminal.wait_for("Allow it? [y/N]")
        assert (tmp_path / "stdout").read_bytes() == cli.printed(), "the result is there before the question"
        terminal.type("\x03")
        terminal.wait_for("status 0")
    assert (tmp_path / "stdout").read_bytes() == cli.printed()
    [session] = status_json(run)["sessions"]
    assert [(request["key"], request["refused"]) for request in session["requests"]] == [("bind", True)]
    # Without a terminal nothing is asked, and --trust-workspace is the user's word.
    assert devup(run, cli, one, "--trust-workspace").returncode == 0
    [session] = status_json(run)["sessions"]
    assert (session["requests"], session["exposed"] is None) == ([], False)


def test_devup_without_auto_forward_leaves_no_file_and_no_process(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path
) -> None:
    one = workspace(forwardPorts=[free_port()])
    done = run("devup", "--devcontainer-path", cli.path, *one.up_args, check=0, timeout_s=100)
    assert done.stdout.encode() == cli.printed()
    assert list(home.iterdir()) == []
    assert supervisor_of(home) is None


def test_a_rebuilt_container_has_the_same_host_port(cli: RecordedCli, workspace: WorkspaceFactory, run: Runner) -> None:
    port = free_port()
    one = workspace(forwardPorts=[port])
    assert devup(run, cli, one).returncode == 0
    [before] = rows(run)
    old_id = one.container.id
    assert devup(run, cli, one, "--remove-existing-container").returncode == 0
    [after] = rows(run)
    assert one.container.id != old_id
    assert (after["containerId"], after["localPort"]) == (one.container.id, before["localPort"])
    one.container.start_server(bind="127.0.0.1", port=port, text="again")
    assert_page(f"http://localhost:{after['localPort']}", "again\n")


def test_follow_streams_until_ctrl_c(cli: RecordedCli, workspace: WorkspaceFactory, home: Path) -> None:
    port = free_port()
    one = workspace()
    command = [script("devup"), "--auto-forward", "--follow", "--devcontainer-path", cli.path, *one.up_args]
    with subprocess.Popen(
        command, env=command_env(home), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as child:
        try:
            assert child.stdout is not None
            # The result comes once the attach is done; from then on there is a container to start servers in.
            for line in child.stdout:
                if '"outcome"' in line:
                    break
            one.container.start_server(bind="127.0.0.1", port=port)
            for line in child.stdout:
                [event] = event_lines(line)
                if event["event"] == "forwarded" and event["port"] == port:
                    break
            assert fetch(f"http://localhost:{event['localPort']}") == "hello\n"
            os.kill(child.pid, signal.SIGINT)
            assert child.wait(20) == 0
        finally:
            child.kill()

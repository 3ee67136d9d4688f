"""Attributes, processes and required numbers on a real engine, on the agent and on a shell lane."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from autoforward.forwards.candidates import not_taken
from autoforward.net.bound_pair import lowest_bindable_port
from tests.conftest import ContainerFactory, Runner
from tests.support.containers import LABEL, Container, eventually, fetch, run_id
from tests.support.observing import (
    dev_container_labels,
    free_port,
    logged,
    names,
    new_folder,
    row_of,
    rows,
    wait_event,
)
from tests.support.workspaces import RecordedCli, WorkspaceFactory

pytestmark = pytest.mark.docker

LANES = ["agent", "socat"]
APP = "import http.server, sys; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')"


def start_app(one: Container, container_port: int, *arguments: str, name: str = "app.py", user: str = "") -> None:
    """A server whose command line is `python3 /srv/NAME PORT ARGUMENTS`."""
    one.shell(f'mkdir -p /srv && printf "%s" "{APP}" >/srv/{name}')
    status, said = one.raw.exec_run(
        ["python3", f"/srv/{name}", str(container_port), *arguments], detach=True, user=user
    )
    assert status in (None, 0), said


@pytest.mark.parametrize("lane", LANES)
def test_attributes_by_range_expression_host_and_the_rest(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    first, tool, other, database = free_port(), free_port(), free_port(), free_port()
    folder = new_folder()
    app = container(
        labels=dev_container_labels(
            folder,
            forwardPorts=[f"localhost:{first}", f"db:{database}"],
            portsAttributes={
                f"{first}-{first}": {"label": "range", "protocol": "https", "requireLocalPort": True},
                r"python3 .*app\.py": {"label": "app", "onAutoForward": "silent"},
                r"python3 .*lsp\.py": {"label": "tool", "onAutoForward": "ignore"},
                f"db:{database}": {"label": "sql"},
                "(": {"label": "broken"},
            },
            otherPortsAttributes={"label": "rest", "onAutoForward": "silent"},
        )
    )
    said = run("autoforward", "attach", app.name, "--lane", lane, check=0).stderr
    assert "portsAttributes '(': invalid regular expression: a group is not closed" in said
    start_app(app, first, "--api-key", "hunter2")
    start_app(app, tool, name="lsp.py")
    # Its command line names neither script.
    server = app.start_server(port=other)
    assert server.port == other

    def as_expected() -> bool:
        found = {row["port"]: row for row in rows(run)}
        assert {first, tool, other, database} <= found.keys()
        # A range fills first; what it leaves unset the expression says; neither hands on requireLocalPort.
        ranged = found[first]
        assert (ranged["label"], ranged["protocol"], ranged["onAutoForward"]) == ("range", "https", "silent")
        assert ranged["requireLocalPort"] is None
        assert ranged["process"] == f"python3 /srv/app.py {first} --api-key ***"
        ignored = found[tool]
        assert (ignored["label"], ignored["status"], ignored["localPort"]) == ("tool", "ignored", None), ignored
        assert ignored["process"] == f"python3 /srv/lsp.py {tool}"
        rest = found[other]
        assert (rest["label"], rest["status"]) == ("rest", "active")
        sql = found[database]
        assert (sql["label"], sql["containerHost"], sql["process"]) == ("sql", "db", None)
        return True

    eventually(as_expected, timeout_s=20, what="every port has its attributes")
    # Never forwarded for a moment: whose it is was known before it was decided.
    # (A shell lane may need longer for that than it is waited for.)
    if lane == "agent":
        wait_event(home, "ignored", tool)
        assert set(names(logged(home, tool))) == {"ignored"}
    assert fetch(row_of(run, first)["url"].replace("https", "http") + "/srv/app.py")
    written = (home / "events.jsonl").read_text()
    assert "hunter2" not in written


@pytest.mark.parametrize("lane", LANES)
def test_a_process_of_another_user_is_null_or_its_own(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    """As far as the user's rights go: an unprivileged user of the container sees no descriptors of root's."""
    port = free_port()
    app = container(user="dev")
    app.start_server(port=port, user="root")
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    assert row_of(run, port, status="active")["process"] is None


def test_a_required_local_port_that_is_taken_fails_with_its_owner(
    container: ContainerFactory, run: Runner, home: Path
) -> None:
    port = free_port()
    folder = new_folder()
    app = container(
        labels=dev_container_labels(
            folder, forwardPorts=[port], portsAttributes={str(port): {"requireLocalPort": True, "label": "web"}}
        )
    )
    app.start_server(port=port)
    with socket.create_server(("127.0.0.1", port)):
        run("autoforward", "attach", app.name, check=0)
        event = wait_event(home, "failed", port)
        assert (event["status"], event["localPort"], event["requireLocalPort"]) == ("failed", None, True)
        assert event["reason"].startswith(f"host port {port} is in use by ")
        assert "(pid " in event["reason"]
        foreground = run("autoforward", "forward", app.name, f"{port}:{port}")
        assert foreground.returncode == 5
        assert f"host port {port} is in use by " in foreground.stderr
    # It is tried again, and nothing else is ever bound.
    assert row_of(run, port, status="active", timeout_s=30)["localPort"] == port
    assert wait_event(home, "forwarded", port)["localPort"] == port
    assert {event["localPort"] for event in logged(home, port)} == {None, port}


def test_elevate_binds_the_number_if_the_system_lets_us(container: ContainerFactory, run: Runner, home: Path) -> None:
    port = next(number for number in range(700, 1000) if bindable(number) is not None)
    app = container(
        labels=dev_container_labels(new_folder(), portsAttributes={str(port): {"elevateIfNeeded": True}}),
    )
    app.start_server(port=port)
    run("autoforward", "attach", app.name, check=0)
    row = row_of(run, port, status="active")
    not_asked_for = not_taken(port, lowest_bindable_port())
    assert row["localPort"] == 8000 + port, "a label alone"
    assert row["reason"].startswith(f"host port {port} is not granted to it: ")
    assert row["reason"].endswith(f"; {not_asked_for}")
    run("autoforward", "attach", app.name, "--trust-workspace", check=0)
    row = row_of(run, port, status="active")
    if bindable(port) is None or row["localPort"] == port:
        assert (row["localPort"], row["remapped"], row["reason"]) == (port, False, None)
    else:
        assert (row["localPort"], row["reason"]) == (8000 + port, f"host port {port} is privileged")
    assert fetch(f"http://127.0.0.1:{row['localPort']}") == "hello\n"


def bindable(number: int) -> bool | None:
    """Whether this user may bind the number; None when somebody has it."""
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", number))
        except PermissionError:
            return False
        except OSError:
            return None
    return True


def test_attributes_that_change_reach_a_live_forward(container: ContainerFactory, run: Runner, tmp_path: Path) -> None:
    """Attached again after an edit: a forward is updated in place, and reopened only for another number."""
    port = free_port()
    config = tmp_path / ".devcontainer.json"

    def says(**attributes: object) -> None:
        config.write_text(json.dumps({"image": "x", "portsAttributes": {str(port): attributes}}))

    says(label="one")
    app = container(labels=dev_container_labels(str(tmp_path)))
    app.start_server(port=port)
    with socket.create_server(("127.0.0.1", port)):
        run("autoforward", "attach", app.name, check=0)
        before = row_of(run, port, status="active")
        assert (before["label"], before["remapped"]) == ("one", True)
        says(label="two")
        run("autoforward", "attach", app.name, check=0)
        updated = row_of(run, port, status="active")
        assert (updated["label"], updated["id"], updated["localPort"]) == ("two", before["id"], before["localPort"])
        says(label="two", requireLocalPort=True)
        run("autoforward", "attach", app.name, check=0)
        row_of(run, port, status="failed")
    assert row_of(run, port, status="active", timeout_s=30)["localPort"] == port


def test_image_feature_and_file_give_the_same_attributes_with_either_cli(
    cli: RecordedCli, workspace: WorkspaceFactory, images: Mapping[str, str], run: Runner
) -> None:
    """The official CLI takes no ports from features, devcontainer-rs none from images: both are read here."""
    of_image, of_feature, of_file, of_all = (free_port() for _ in range(4))
    said = {"label": "same", "protocol": "https", "onAutoForward": "silent", "elevateIfNeeded": True}
    metadata = json.dumps([{"portsAttributes": {str(of_image): said, str(of_all): {"label": "image"}}}])
    tag = f"autoforward-test/labelled:{of_image}"
    text = f"FROM {images['full']}\nLABEL devcontainer.metadata='{metadata}' {LABEL}={run_id()}\n"
    subprocess.run(
        ["docker", "build", "-q", "-t", tag, "-"], input=text.encode(), check=True, stdout=subprocess.DEVNULL
    )
    one = workspace(
        "image",
        features={"./feature": {}},
        portsAttributes={str(of_file): said, str(of_all): {"label": "file"}},
    )
    config = one.folder / ".devcontainer" / "devcontainer.json"
    config.write_text(config.read_text().replace(images["full"], tag))
    feature = one.folder / ".devcontainer" / "feature"
    feature.mkdir()
    attributes = {str(of_feature): said, str(of_all): {"label": "feature"}}
    described = {"id": "feature", "version": "1.0.0", "name": "x", "portsAttributes": attributes}
    (feature / "devcontainer-feature.json").write_text(json.dumps(described))
    (feature / "install.sh").write_text("#!/bin/sh\ntrue\n")
    (feature / "install.sh").chmod(0o755)

    def as_said() -> None:
        for port in (of_image, of_feature, of_file):
            row = row_of(run, port, status="active")
            assert {name: row[name] for name in said} == said, port
        assert row_of(run, of_all)["label"] == "file"

    done = run("devup", "--auto-forward", "--devcontainer-path", cli.path, *one.up_args, timeout_s=150)
    assert done.returncode == 0, done.stderr
    for port in (of_image, of_feature, of_file, of_all):
        one.container.start_server(port=port)
    as_said()
    run("autoforward", "detach", "--all", check=0)
    run("autoforward", "attach", one.container.name, check=0)
    as_said()

"""Shapes of real projects' files through both devcontainer CLIs, from `devup` to the bytes (decisions: test_real_files.py)."""

from __future__ import annotations

import json
import socket

import pytest

from tests.conftest import Runner
from tests.support.containers import eventually, fetch
from tests.support.observing import free_port, row_of, rows
from tests.support.workspaces import RecordedCli, WorkspaceFactory

pytestmark = pytest.mark.docker

MANY = 100
LISTEN = f"import socket, time; held = [socket.create_server(('127.0.0.1', 20000 + n)) for n in range({MANY})]; time.sleep(600)"


def test_services_by_name_with_labels_by_host_and_port(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    """`app` is the dev container itself: one port, its own; `db` is another host."""
    port = free_port()
    one = workspace(
        "compose",
        forwardPorts=["db:5432", f"app:{port}"],
        portsAttributes={
            "db:5432": {"label": "database", "visibility": "private"},
            f"app:{port}": {"label": "web of ${localWorkspaceFolderBasename}"},
        },
        otherPortsAttributes={"onAutoForward": "ignore"},
    )
    done = run("devup", "--auto-forward", "--devcontainer-path", cli.path, *one.up_args, check=0, timeout_s=100)
    assert "warning" not in done.stderr
    assert row_of(run, port)["status"] == "waiting", "no server yet: it is not `active`"
    one.container.start_server(bind="127.0.0.1", port=port, text="vite")
    row = row_of(run, port, status="active")
    assert (row["label"], row["containerHost"]) == (f"web of {one.folder.name}", "127.0.0.1")
    assert fetch(row["url"]) == "vite\n"
    database = row_of(run, 5432)
    assert (database["label"], database["containerHost"], database["url"]) == ("database", "db", None)
    with socket.create_connection(("127.0.0.1", database["localPort"]), timeout=10) as connection:
        connection.settimeout(10)
        assert connection.makefile("rb").read() == b"hello from db\n"


def test_app_ports_a_feature_s_ports_and_ranges_that_ignore_the_rest(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner
) -> None:
    """In the current folder, without --workspace-folder; ranges reach beyond the ports, a hundred servers are ignored."""
    pin, app, plain, declared, of_feature = (free_port() for _ in range(5))
    ignore = {"onAutoForward": "ignore"}
    one = workspace(
        appPort=[f"{pin}:{app}", plain],
        forwardPorts=[declared],
        portsAttributes={
            f"0-{declared - 1}": ignore,
            f"{declared + 1}-999999": ignore,
            str(declared): {"label": "web"},
        },
        features={"./feature": {}},
    )
    feature = one.folder / ".devcontainer" / "feature"
    feature.mkdir()
    described = {"id": "feature", "version": "1.0.0", "name": "x", "forwardPorts": [of_feature]}
    (feature / "devcontainer-feature.json").write_text(json.dumps(described))
    (feature / "install.sh").write_text("#!/bin/sh\ntrue\n")
    (feature / "install.sh").chmod(0o755)
    words = ["devup", "--auto-forward", "--devcontainer-path", cli.path, "--buildkit", "never"]
    done = run(*words, check=0, cwd=one.folder, timeout_s=100)
    assert f"{pin}:{app} of appPort on loopback only" in done.stderr
    assert "warning" not in done.stderr
    one.container.raw.reload()
    assert not one.container.raw.attrs["HostConfig"]["PortBindings"]
    config_file = str(one.folder / ".devcontainer" / "devcontainer.json")
    assert one.container.raw.labels["devcontainer.config_file"] == config_file
    one.container.raw.exec_run(["python3", "-c", LISTEN], detach=True)
    for port in (app, of_feature):
        one.container.start_server(bind="127.0.0.1", port=port, text=str(port))

    def all_seen() -> bool:
        return sum(row["status"] == "ignored" for row in rows(run)) == MANY

    assert eventually(all_seen, what=f"{MANY} ignored ports")
    found = {row["port"]: row for row in rows(run) if row["status"] != "ignored"}
    assert {port: row["localPort"] for port, row in found.items()} == {
        app: pin,
        plain: plain,
        declared: declared,
        of_feature: of_feature,
    }
    assert found[declared]["label"] == "web"
    for port in (app, of_feature):
        assert row_of(run, port, status="active")
        assert fetch(f"http://localhost:{found[port]['localPort']}") == f"{port}\n"

"""A saved configuration is in force at once, a broken one is said once, and untouched forwards notice nothing."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Container, assert_page
from tests.support.observing import free_port, logged, names, row_of, rows, status_json, wait_event
from tests.support.workspaces import RecordedCli, Workspace, WorkspaceFactory

pytestmark = pytest.mark.docker

DOWNLOAD_BYTES = 100 * 1024 * 1024

# Sends its one client a stream that is not the same anywhere, in two halves: the second when a line has come.
_SENDER = """
import hashlib, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
connection, _ = listener.accept()
digest = hashlib.sha256()
half = int(sys.argv[2]) // 2
for part in range(2):
    for number in range(half // 65536):
        block = hashlib.sha256(b"%d %d" % (part, number)).digest() * 2048
        digest.update(block)
        connection.sendall(block)
    if part == 0:
        connection.recv(1)
print(digest.hexdigest(), flush=True)
connection.close()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".devcontainer").mkdir()
    return tmp_path


def config_file(folder: Path) -> Path:
    return folder / ".devcontainer" / "devcontainer.json"


def save(path: Path, text: str | dict[str, Any]) -> float:
    """As editors do: a new file takes the place of the old one. When that was (monotonic)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + "~")
    beside.write_text(text if isinstance(text, str) else json.dumps(text))
    beside.replace(path)
    return time.monotonic()


def dev_container(container: ContainerFactory, folder: Path) -> Container:
    return container(labels={"devcontainer.local_folder": str(folder)})


def last_seq(home: Path) -> int:
    return max(event["seq"] for event in logged(home))


def test_a_port_is_added_during_a_download_through_another(
    container: ContainerFactory,
    run: Runner,
    folder: Path,
    home: Path,
    record_property: Callable[[str, object], None],
) -> None:
    save(config_file(folder), {"forwardPorts": [3000]})
    one = dev_container(container, folder)
    command = ["docker", "exec", one.id, "python3", "-c", _SENDER, "3000", str(DOWNLOAD_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        # Never detected, so that only the file can make them forwarded.
        run("autoforward", "attach", str(folder), "--no-auto", check=0)
        old = row_of(run, 3000, status="active")
        one.start_server(port=4000, text="new")
        digest, received = hashlib.sha256(), 0
        with socket.create_connection(("127.0.0.1", old["localPort"]), timeout=60) as client:
            while received < DOWNLOAD_BYTES // 2:
                received += len(data := client.recv(1 << 20))
                digest.update(data)
            # In the middle of it: half has come, and the other half is being sent while the configuration changes.
            local = free_port()
            client.sendall(b"x")
            saved_s = save(
                config_file(folder),
                {
                    "forwardPorts": [3000, f"{local}:4000"],
                    "portsAttributes": {"3000": {"label": "old"}, "4000": {"label": "added"}},
                },
            )
            answered: list[float] = []

            def ask() -> None:
                assert_page(f"http://localhost:{local}", "new\n", timeout_s=30)
                answered.append(time.monotonic())

            asking = threading.Thread(target=ask)
            asking.start()
            while data := client.recv(1 << 20):
                received += len(data)
                digest.update(data)
            asking.join()
        assert received == DOWNLOAD_BYTES
        assert digest.hexdigest() == sender.stdout.readline().strip()
    took_s = answered[0] - saved_s
    record_property("seconds from the save to the first answer", round(took_s, 3))
    print(f"\n{took_s:.3f} s from the save to the first answer of the new port")
    assert took_s < 5
    assert row_of(run, 4000)["label"] == "added"
    now = row_of(run, 3000)
    assert (now["label"], now["localPort"], now["id"]) == ("old", old["localPort"], old["id"])
    # The sender has ended by now, and with it its server.
    assert [name for name in names(logged(home, 3000)) if name != "waiting"] == ["forwarded", "updated"]


def test_ports_are_removed_relabelled_pinned_and_excluded_without_a_command(
    container: ContainerFactory, run: Runner, folder: Path, home: Path
) -> None:
    save(config_file(folder), {"forwardPorts": [3000, 3001], "portsAttributes": {"3002": {"label": "before"}}})
    one = dev_container(container, folder)
    for port in (3002, 3003, 3004):
        one.start_server(port=port)
    run("autoforward", "attach", str(folder), check=0)
    for port in (3002, 3003, 3004):
        wait_event(home, "forwarded", port)
    since = last_seq(home)
    local = free_port()
    save(
        config_file(folder),
        {
            "forwardPorts": [3000],
            "portsAttributes": {"3002": {"label": "after"}},
            "customizations": {"autoforward": {"localPorts": {"3003": local}, "exclude": [3004]}},
        },
    )
    assert wait_event(home, "updated", 3002, since=since)["label"] == "after"
    wait_event(home, "unforwarded", 3001, since=since)
    assert wait_event(home, "forwarded", 3003, since=since)["localPort"] == local
    assert wait_event(home, "ignored", 3004, since=since)["reason"] == "excluded"
    assert logged(home, 3000, since=since) == [], "nothing was changed about it"
    assert {row["port"] for row in rows(run)} == {3000, 3002, 3003, 3004}
    # What is stored is what the next supervisor takes up.
    [session] = json.loads((home / "registry.json").read_text())["sessions"]
    assert [spec["container_port"] for spec in session["declared"]] == [3000]


def test_a_broken_save_keeps_the_last_good_configuration_and_is_said_once(
    container: ContainerFactory, run: Runner, folder: Path, home: Path
) -> None:
    save(config_file(folder), {"forwardPorts": [3000]})
    dev_container(container, folder)
    run("autoforward", "attach", str(folder), check=0)
    since = last_seq(home)

    save(config_file(folder), '{\n  "forwardPorts": [4000,,]\n}')
    event = wait_event(home, "updated", None, since=since)
    assert f"{config_file(folder)}:2:25: " in event["reason"]
    assert {row["port"] for row in rows(run)} == {3000}
    [session] = status_json(run)["sessions"]
    assert f"{config_file(folder)}:2:25: " in session["config_problem"]
    assert "devcontainer.json:2:25" in run("autoforward", "status", check=0).stdout

    # Saved again with the same fault; then another file, which shows that the watcher has been by.
    save(config_file(folder), '{\n  "forwardPorts": [5000,,]\n}')
    (folder / ".autoforward.toml").write_text("pollInterval = 'x'\n")
    save(config_file(folder), {"forwardPorts": [3000]})
    wait_event(home, "updated", None, since=event["seq"])
    said = [one["reason"] for one in logged(home, None, since=since) if one["event"] == "updated"]
    assert len(said) == 2, "once for each fault"
    assert f"{folder}/.autoforward.toml:1: pollInterval" in said[1]

    (folder / ".autoforward.toml").write_text("")
    save(config_file(folder), {"forwardPorts": [3000, 6000]})
    wait_event(home, "waiting", 6000, since=since)
    [session] = status_json(run)["sessions"]
    assert session["config_problem"] is None


def test_files_that_come_and_go_and_folders_too(
    container: ContainerFactory, run: Runner, folder: Path, home: Path, tmp_path: Path
) -> None:
    """The user's file in a folder that was not there, a project file, a link to a file elsewhere."""
    elsewhere = tmp_path / "elsewhere" / "real.json"
    save(elsewhere, {"forwardPorts": [3000]})
    config_file(folder).symlink_to(elsewhere)
    dev_container(container, folder)
    run("autoforward", "attach", str(folder), check=0)
    since = last_seq(home)

    save(home / "user" / "autoforward" / "config.toml", 'forwards = ["4000"]')
    wait_event(home, "waiting", 4000, since=since)
    save(folder / ".autoforward.toml", 'forwards = ["5000"]')
    wait_event(home, "waiting", 5000, since=since)
    wait_event(home, "unforwarded", 4000, since=since)
    (folder / ".autoforward.toml").unlink()
    wait_event(home, "unforwarded", 5000, since=since)
    save(elsewhere, {"forwardPorts": [6000]})
    wait_event(home, "waiting", 6000, since=since)
    wait_event(home, "unforwarded", 3000, since=since)

    # A folder that is taken away and made anew, as when a branch is checked out.
    since = last_seq(home)
    config_file(folder).parent.rename(folder / "aside")
    assert "not there any more" in wait_event(home, "updated", None, since=since)["reason"]
    assert 6000 in {row["port"] for row in rows(run)}
    save(config_file(folder), {"forwardPorts": [7000]})
    wait_event(home, "waiting", 7000, since=since)


def test_flags_go_on_to_count_after_a_save(container: ContainerFactory, run: Runner, folder: Path, home: Path) -> None:
    save(config_file(folder), {"customizations": {"autoforward": {"exclude": [3000]}}})
    one = dev_container(container, folder)
    for port in (3000, 3001):
        one.start_server(port=port)
    run("autoforward", "attach", str(folder), "--exclude", "3001", "9999:9999", check=0)
    since = last_seq(home)
    save(config_file(folder), {"forwardPorts": [5000], "customizations": {"autoforward": {"exclude": [1]}}})
    wait_event(home, "waiting", 5000, since=since)
    status = {row["port"]: row["status"] for row in rows(run)}
    assert status == {3000: "active", 3001: "ignored", 5000: "waiting", 9999: "waiting"}


def test_a_file_that_changed_while_nobody_watched(
    container: ContainerFactory, run: Runner, folder: Path, home: Path
) -> None:
    save(config_file(folder), {"forwardPorts": [3000]})
    dev_container(container, folder)
    run("autoforward", "attach", str(folder), check=0)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    save(config_file(folder), {"forwardPorts": [3000, 4000]})
    since = last_seq(home)
    run("autoforward", "list", check=0)
    wait_event(home, "waiting", 4000, since=since)


def test_label_of_a_cli_does_not_keep_what_left_the_file(
    cli: RecordedCli, workspace: WorkspaceFactory, run: Runner, home: Path
) -> None:
    """The official CLI keeps devcontainer.json, as it was at the start, in the container's metadata."""
    one = workspace(forwardPorts=[3000, 3001], portsAttributes={"3001": {"label": "before"}})
    up = ("devup", "--auto-forward", "--devcontainer-path", cli.path, *one.up_args)
    run(*up, timeout_s=100, check=0)
    since = last_seq(home)
    one.write(one_with(one, forwardPorts=[3001, "db:5432"], portsAttributes={"3001": {"label": "after"}}))
    wait_event(home, "unforwarded", 3000, since=since)
    assert wait_event(home, "updated", 3001, since=since)["label"] == "after"
    wait_event(home, "forwarded", 5432, since=since)
    run(*up, timeout_s=100, check=0)
    assert {row["port"]: row["label"] for row in rows(run)} == {3001: "after", 5432: None}


def one_with(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    text = config_file(workspace.folder).read_text()
    config: dict[str, Any] = json.loads(text.partition("\n")[2])
    return config | changes


def test_a_port_that_was_stopped_stays_so_when_something_else_is_saved(
    container: ContainerFactory, run: Runner, folder: Path, home: Path
) -> None:
    save(config_file(folder), {"forwardPorts": [3000]})
    one = dev_container(container, folder)
    one.start_server(port=3001)
    run("autoforward", "attach", str(folder), check=0)
    row = row_of(run, 3001, status="active")
    run("autoforward", "stop", row["id"], check=0)
    since = last_seq(home)
    save(config_file(folder), {"forwardPorts": [3000, 4000]})
    wait_event(home, "waiting", 4000, since=since)
    assert {row["port"] for row in rows(run)} == {3000, 4000}

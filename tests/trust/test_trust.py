"""A container that writes its workspace, or brings a label, gets nothing of the host that the user has not granted."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoforward.net.bound_pair import lowest_bindable_port
from tests.conftest import ContainerFactory, Runner, command_env, script, supervisor_of
from tests.support.containers import Container, eventually, fetch
from tests.support.desktops import FakeBrowser
from tests.support.observing import Command, Row, free_port, logged, row_of, rows, status_json, wait_event
from tests.support.terminal import Terminal

pytestmark = pytest.mark.docker

TOKEN = "ghp_0123456789abcdefghijklmnop"

needs_low_ports = pytest.mark.skipif(
    (lowest_bindable_port() or 1) > 900, reason="this user may not bind ports below 1024, so nothing would be asked"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".devcontainer").mkdir()
    return tmp_path


@pytest.fixture
def workspace(container: ContainerFactory, folder: Path) -> Callable[..., Container]:
    """A dev container with its folder mounted at /ws, as all have it."""

    def make(label: Mapping[str, Any] | None = None) -> Container:
        labels = {"devcontainer.local_folder": str(folder)}
        if label is not None:
            labels["devcontainer.metadata"] = json.dumps([{"id": "feature", **label}])
        return container(labels=labels, volumes={str(folder): {"bind": "/ws", "mode": "rw"}})

    return make


def write_inside(one: Container, path: str, text: str) -> None:
    """What the container itself writes into its mount."""
    one.shell(f"printf %s {shlex.quote(text)} > /ws/{path}.new && mv /ws/{path}.new /ws/{path}")


def free_low_port() -> int:
    for number in range(900, 1023):
        with socket.socket() as four, socket.socket(socket.AF_INET6) as six, contextlib.suppress(OSError):
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            four.bind(("0.0.0.0", number))
            six.bind(("::", number))
            return number
    raise AssertionError("no port below 1024 is free")


def listening(home: Path) -> set[tuple[str, int]]:
    """Where the supervisor listens now, by the kernel."""
    supervisor = supervisor_of(home)
    assert supervisor is not None
    found = supervisor.net_connections("tcp")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


@contextlib.contextmanager
def nothing_is_exposed(home: Path) -> Iterator[None]:
    """At no moment within the block does the supervisor listen off loopback or below 1024."""
    seen: set[tuple[str, int]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            with contextlib.suppress(AssertionError, psutil.Error):
                seen.update(listening(home))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
    wrong = {(ip, port) for ip, port in seen if ip not in ("127.0.0.1", "::1") or port < 1024}
    assert not wrong, "it listened there without the user's word"


def asked(run: Runner, *target: str) -> list[str]:
    return [row["reason"] for row in rows(run, *target) if row["port"] is None and "not granted" in row["reason"]]


@needs_low_ports
def test_file_written_by_a_container_opens_nothing_until_it_is_granted(
    workspace: Callable[..., Container], run: Runner, folder: Path, home: Path
) -> None:
    low, port = free_low_port(), free_port()
    one = workspace()
    one.start_server(port=port, text="inside")
    run("autoforward", "attach", str(folder), check=0)
    assert row_of(run, port, status="active")["localPort"] == port
    with nothing_is_exposed(home):
        write_inside(
            one,
            ".autoforward.toml",
            f'bind = "0.0.0.0"\nmaxPorts = 1000\nnotify = false\n[localPorts]\n{port} = {low}\n',
        )
        said = eventually(lambda: asked(run) if len(asked(run)) == 3 else None, what="the requests in the list")
        assert said is not None
    assert ("0.0.0.0", low) not in listening(home)
    way_out = f"`autoforward trust {folder}`"
    assert all(".autoforward.toml asks for" in text and text.endswith(way_out) for text in said)
    assert {text.split(" asks for ")[1].split(" = ")[0] for text in said} == {"bind", "maxPorts", "localPorts"}
    row = row_of(run, port)
    assert (row["hostIp"], row["localPort"], row["status"]) == ("127.0.0.1", port, "active")
    assert row["reason"] == f"host port {low} is not granted to it: {way_out}"
    status = status_json(run)
    [session] = status["sessions"]
    assert {one["key"] for one in session["requests"]} == {"bind", "maxPorts", "localPorts"}
    assert session["exposed"] is None
    assert "not granted: bind = 0.0.0.0 (.autoforward.toml)" in run("autoforward", "status", check=0).stdout

    # No terminal and no --yes: shown, and not allowed.
    refused = run("autoforward", "trust", str(folder), check=1)
    assert "bind: 0.0.0.0" in refused.stdout
    assert "no terminal" in refused.stderr
    assert ("0.0.0.0", low) not in listening(home)

    since = logged(home)[-1]["seq"]
    run("autoforward", "trust", str(folder), "--yes", check=0)
    assert ("0.0.0.0", low) in listening(home), "granted: in force on return"
    assert fetch(f"http://127.0.0.1:{low}") == "inside\n"
    event = wait_event(home, "forwarded", port, since=since)
    loud = "other machines can reach it: it listens on 0.0.0.0"
    assert event["reason"] == loud
    assert row_of(run, port)["reason"] == loud
    assert loud in run("autoforward", "list", check=0).stdout
    assert f"forwards: {loud}" in run("autoforward", "status", check=0).stdout
    assert asked(run) == []

    # Another edit asks for nothing again.
    write_inside(
        one,
        ".autoforward.toml",
        f'bind = "0.0.0.0"\nmaxPorts = 1000\nexclude = [9229]\n[localPorts]\n{port} = {low}\n',
    )
    run("autoforward", "trust", str(folder), check=0)

    with pytest.raises(AssertionError):
        _expose(home)
    listed = json.loads(run("autoforward", "trust", str(folder), "--list", "--json", check=0).stdout)
    assert sorted(answer["key"] for one in listed for answer in one["answers"]) == ["bind", "localPorts", "maxPorts"]
    run("autoforward", "trust", str(folder), "--revoke", check=0)
    assert not {(ip, number) for ip, number in listening(home) if ip == "0.0.0.0" or number == low}
    assert len(asked(run)) == 3


def _expose(home: Path) -> None:
    """That the sampler can fail: it does while the forward is granted."""
    with nothing_is_exposed(home):
        threading.Event().wait(0.1)


LIVE: Mapping[str, Callable[[int, int], Mapping[str, Any]]] = {
    "bind": lambda _port, _low: {"bind": "0.0.0.0"},
    "localPorts": lambda port, low: {"localPorts": {str(port): low}},
    "forwards": lambda port, low: {"forwards": [f"{low}:{port}"]},
    "forwardPorts": lambda port, low: {"forwardPorts": [f"{low}:{port}"]},
    "appPort": lambda port, low: {"appPort": f"{low}:{port}"},
    "elevateIfNeeded": lambda _port, low: {
        "forwardPorts": [low],
        "portsAttributes": {str(low): {"elevateIfNeeded": True}},
    },
}
"""What moves a socket of the host, by key."""

SOURCES = ("devcontainer.json", ".autoforward.toml", "label")


def _cases() -> Iterator[Any]:
    for key in LIVE:
        for source in SOURCES:
            of_toml = key in ("bind", "localPorts", "forwards")
            if (source == ".autoforward.toml" and not of_toml) or (source == "label" and key == "appPort"):
                continue
            for moment in ("attach", "live") if source != "label" else ("attach",):
                yield pytest.param(key, source, moment, id=f"{key}-{source}-{moment}")


@needs_low_ports
@pytest.mark.parametrize(("key", "source", "moment"), list(_cases()))
def test_no_source_alone_makes_a_host_socket_wider(
    key: str,
    source: str,
    moment: str,
    workspace: Callable[..., Container],
    run: Runner,
    folder: Path,
    home: Path,
) -> None:
    low, port = free_low_port(), free_port()
    says = LIVE[key](port, low)
    entry = says if set(says) & {"forwardPorts", "appPort"} else {"customizations": {"autoforward": says}}
    one = workspace(entry if source == "label" else None)
    one.start_server(port=port, text="inside")
    one.start_server(port=low, text="low")

    def say() -> None:
        if source == "devcontainer.json":
            write_inside(one, ".devcontainer/devcontainer.json", json.dumps(entry))
        elif source == ".autoforward.toml":
            write_inside(one, source, "".join(f"{name} = {_toml(value)}\n" for name, value in says.items()))

    (folder / ".devcontainer" / "devcontainer.json").write_text("{}")
    with nothing_is_exposed(home):
        if moment == "live":
            run("autoforward", "attach", str(folder), check=0)
        say()
        if moment == "attach":
            run("autoforward", "attach", str(folder), check=0)
        [reason] = eventually(lambda: asked(run) or None, what="the request in the list") or []
        assert f"asks for {'forwardPorts' if key == 'appPort' else key} = " in reason
        row_of(run, port, status="active")
    wanted = {("0.0.0.0", port)} if key == "bind" else {("127.0.0.1", low)}
    assert not wanted & listening(home)
    run("autoforward", "trust", str(folder), "--yes", check=0)
    eventually(lambda: wanted <= listening(home), what=f"{wanted} once it is granted")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{name}" = {json.dumps(one)}' for name, one in value.items()) + "}"
    return json.dumps(value)


def test_a_variable_of_the_caller_s_leaves_nothing_and_nothing_is_dialled(
    workspace: Callable[..., Container], run: Runner, folder: Path, home: Path, tmp_path: Path
) -> None:
    """The container writes that its nameserver be asked for the caller's token, and that a browser be opened."""
    one = workspace()
    secret_host = "${localEnv:GITHUB_TOKEN}.x.test:80"
    write_inside(
        one,
        ".devcontainer/devcontainer.json",
        json.dumps(
            {
                "forwardPorts": [secret_host, "${localEnv:GITHUB_TOKEN}"],
                "portsAttributes": {
                    "${localEnv:GITHUB_TOKEN}.x.test:80": {"onAutoForward": "openBrowser"},
                    "9000": {"label": "${localEnv:GITHUB_TOKEN}"},
                },
                "customizations": {"autoforward": {"forwards": ["${localEnv:GITHUB_TOKEN}.y.test:80"]}},
            }
        ),
    )
    browser = FakeBrowser(tmp_path)
    environment: dict[str, str | None] = {"GITHUB_TOKEN": TOKEN, "AUTOFORWARD_BROWSER": str(browser.path)}
    attached = run("autoforward", "attach", str(folder), env=environment, check=0)
    doctor = run("autoforward", "doctor", str(folder), env=environment)
    listed = rows(run)
    assert [row for row in listed if row["port"] is not None] == []
    asking = asked(run)
    assert len(asking) == 1
    assert "GITHUB_TOKEN" in asking[0], "the variable's name is said"
    said = [attached.stdout, attached.stderr, doctor.stdout, doctor.stderr, json.dumps(listed)]
    said += [run("autoforward", *words, check=0).stdout for words in (["status"], ["logs"], ["events"], ["list"])]
    trusted = run("autoforward", "trust", str(folder), env=environment, check=1)
    said += [trusted.stdout, trusted.stderr]
    for text in said:
        assert TOKEN not in text
    files = [path for path in home.rglob("*") if path.is_file()]
    assert {"registry.json", "events.jsonl", "supervisor.log"} <= {path.name for path in files}
    for path in files:
        assert TOKEN.encode() not in path.read_bytes(), path.name
    assert browser.calls == []
    # Granted, it is what the user wanted: at once, with the value of the shell that granted it.
    run("autoforward", "trust", str(folder), "--yes", env=environment, check=0)
    assert TOKEN.encode() not in (home / "approvals.json").read_bytes()
    assert {row["containerHost"] for row in rows(run) if row["port"] == 80} == {f"{TOKEN}.{x}.test" for x in "xy"}


def test_a_browser_opens_for_what_was_there_at_the_attach_alone(
    workspace: Callable[..., Container], run: Runner, folder: Path, home: Path, tmp_path: Path
) -> None:
    browser = FakeBrowser(tmp_path)
    first, later = free_port(), free_port()
    opens = {"onAutoForward": "openBrowser"}
    one = workspace()
    config = folder / ".devcontainer" / "devcontainer.json"
    config.write_text(json.dumps({"portsAttributes": {str(first): opens}}))
    run("autoforward", "attach", str(folder), env={"AUTOFORWARD_BROWSER": str(browser.path)}, check=0)
    assert asked(run) == [], "the attach is the user's word for what is there"
    both = {"portsAttributes": {str(first): opens, str(later): opens}}
    write_inside(one, ".devcontainer/devcontainer.json", json.dumps(both))
    eventually(lambda: asked(run), what="the request")
    one.start_server(port=later)
    row_of(run, later, status="active")
    one.start_server(port=first)
    assert browser.wait(1) == [f"http://localhost:{first}"]
    assert wait_event(home, "forwarded", later)["onAutoForward"] == "notify"
    run("autoforward", "trust", str(folder), "--yes", check=0)
    assert asked(run) == []
    assert row_of(run, later)["onAutoForward"] == "openBrowser"
    assert len(browser.calls) == 1, "nothing that is up already is opened by an approval"


def test_new_image_opens_no_browser_by_itself(
    container: ContainerFactory, run: Runner, home: Path, folder: Path
) -> None:
    """The user attached once; the rebuilt container comes with a label that would open one: to the session that waits for
    it, and under a watch to one that is new."""
    opens = {"portsAttributes": {"3000": {"onAutoForward": "openBrowser"}}}

    def start(label: Mapping[str, Any]) -> Container:
        metadata = json.dumps([{"id": "feature", **label}])
        return container(labels={"devcontainer.local_folder": str(folder), "devcontainer.metadata": metadata})

    def asks() -> list[tuple[Any, ...]]:
        return [(one["source"], one["key"], one["value"]) for row in _sessions(run) for one in row["requests"]]

    first = start({})
    run("autoforward", "attach", str(folder), check=0)
    # It is remembered, soon: outside the session, too.
    eventually(lambda: (home / "approvals.json").exists(), what="what was seen at the attach")
    first.remove()
    start(opens)
    expected = [("label", "onAutoForward", "3000: openBrowser")]
    eventually(lambda: asks() == expected, timeout_s=30, what="the session goes on in the next container")
    run("autoforward", "detach", str(folder), check=0)
    with Command(home, "autoforward", "watch", "--label", f"devcontainer.local_folder={folder}"):
        eventually(lambda: _sessions(run), timeout_s=30, what="the session of the watch")
        assert asks() == expected


def _sessions(run: Runner) -> list[Row]:
    found: list[Row] = status_json(run)["sessions"]
    return found


# -- the question ----------------------------------------------------------------------------------


@pytest.fixture
def asks_for_all_addresses(workspace: Callable[..., Container], folder: Path) -> int:
    """A port of a dev container that asks for `bind`."""
    (folder / ".autoforward.toml").write_text('bind = "0.0.0.0"\n')
    server = workspace().start_server(port=free_port())
    return server.port


def terminal(home: Path, tmp_path: Path, *argv: str) -> Terminal:
    """The command on a terminal, with stdout in a file: a person is asked all the same."""
    command = f"trap : INT; {shlex.join([script('autoforward'), *argv])} > {tmp_path}/stdout; echo status $?"
    return Terminal(["sh", "-c", command], command_env(home, {"TERM": "xterm"}), columns=200)


@pytest.mark.parametrize(
    ("keys", "allowed"), [("y\n", True), ("n\n", False), ("\n", False), ("\x03", False), ("\x04", False)]
)
def test_attach_asks_once_after_all_else_is_forwarded(
    keys: str, allowed: bool, asks_for_all_addresses: int, run: Runner, folder: Path, home: Path, tmp_path: Path
) -> None:
    port = asks_for_all_addresses
    with terminal(home, tmp_path, "attach", str(folder)) as one:
        one.wait_for("Allow it? [y/N]")
        assert ("127.0.0.1", port) in listening(home), "all else is forwarded before the question"
        one.type(keys)
        one.wait_for("status 0")
        assert one.wait_ended() == 0
    assert (tmp_path / "stdout").read_text() == ""
    assert (("0.0.0.0", port) in listening(home)) is allowed
    stored = json.loads((home / "approvals.json").read_text())["workspaces"]
    assert [answer["approved"] for place in stored for answer in place["answers"]] == [allowed]
    with terminal(home, tmp_path, "attach", str(folder)) as again:
        again.wait_for("status 0")
        assert "Allow it?" not in again.text, "an answer is remembered"
    if not allowed:
        assert "you refused it" in asked(run)[0]
        with terminal(home, tmp_path, "trust", str(folder)) as later:
            later.wait_for("Allow it? [y/N]")
            later.type("no\n")
            later.wait_for("status 1")


def test_trust_workspace_of_attach_approves_what_is_asked_now(
    asks_for_all_addresses: int, run: Runner, folder: Path, home: Path
) -> None:
    run("autoforward", "attach", str(folder), "--trust-workspace", check=0)
    assert ("0.0.0.0", asks_for_all_addresses) in listening(home)
    run("autoforward", "trust", str(folder), check=0)
    (folder / ".autoforward.toml").write_text('bind = "0.0.0.0"\nmaxPorts = 1000\n')
    eventually(lambda: len(asked(run)) == 1, what="the request for more ports")
    assert ("0.0.0.0", asks_for_all_addresses) in listening(home)


def test_folders_that_the_user_s_file_trusts_are_not_asked_about(
    asks_for_all_addresses: int, run: Runner, folder: Path, home: Path
) -> None:
    own = home / "user" / "autoforward" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text(f"trust = [{json.dumps(str(folder.parent) + '/**')}]\n")
    run("autoforward", "attach", str(folder), check=0)
    assert ("0.0.0.0", asks_for_all_addresses) in listening(home)
    own.write_text("trust = []\n")
    eventually(lambda: ("0.0.0.0", asks_for_all_addresses) not in listening(home), what="loopback again")


def test_a_container_that_can_write_the_user_s_file_widens_no_session(
    container: ContainerFactory, workspace: Callable[..., Container], run: Runner, folder: Path, home: Path
) -> None:
    own, port = home / "user" / "autoforward" / "config.toml", free_port()
    own.parent.mkdir(parents=True)
    own.write_text('bind = "0.0.0.0"\n')
    one, other = workspace(), container(volumes={str(home / "user"): {"bind": "/ws", "mode": "rw"}})
    one.start_server(port=port, text="inside")
    run("autoforward", "attach", str(folder), check=0)
    assert ("0.0.0.0", port) in listening(home), "the file is the user's alone"
    run("autoforward", "attach", other.name, check=0)
    eventually(lambda: ("127.0.0.1", port) in listening(home), what="loopback, now that a container can write it")
    [reason] = eventually(lambda: asked(run, str(folder)) or None, what="the request in the list") or []
    assert f"config.toml ({other.name} can write it) asks for bind = 0.0.0.0, not granted" in reason
    with nothing_is_exposed(home):
        write_inside(other, "autoforward/config.toml", 'bind = "0.0.0.0"\nmaxPorts = 7\n')
        stored = home / "registry.json"
        eventually(lambda: '"max_ports":7,' in stored.read_text().replace(" ", ""), what="what it narrows")
        again = run("autoforward", "attach", str(folder), check=0)
    assert f"{own}: {other.name} can write it: what it narrows stays so" in again.stderr
    run("autoforward", "trust", str(folder), "--yes", check=0)
    assert ("0.0.0.0", port) in listening(home)


def test_watch_never_asks(asks_for_all_addresses: int, run: Runner, folder: Path, home: Path, tmp_path: Path) -> None:
    with terminal(home, tmp_path, "watch", "--label", f"devcontainer.local_folder={folder}") as one:
        eventually(lambda: len(asked(run)) == 1, timeout_s=30, what="the request in the list")
        assert "Allow it?" not in one.text
        os.killpg(one.process.pid, signal.SIGINT)
        one.wait_ended()
    assert not (home / "approvals.json").exists() or '"answers": []' in (home / "approvals.json").read_text()


def test_an_answer_is_taken_back_whatever_the_container_has_made_of_its_file(
    asks_for_all_addresses: int, run: Runner, folder: Path, home: Path
) -> None:
    run("autoforward", "attach", str(folder), "--trust-workspace", check=0)
    assert ("0.0.0.0", asks_for_all_addresses) in listening(home)
    (folder / ".autoforward.toml").write_text('bind = "0.0.0.0\n')
    run("autoforward", "trust", str(folder), "--revoke", check=0)
    assert json.loads((home / "approvals.json").read_text())["workspaces"][0]["answers"] == []
    eventually(lambda: ("0.0.0.0", asks_for_all_addresses) not in listening(home), what="loopback again")


def test_trust_of_a_folder_without_a_container_is_about_its_files(run: Runner, folder: Path) -> None:
    run("autoforward", "trust", str(folder), check=0)
    (folder / ".autoforward.toml").write_text('bind = "0.0.0.0"\n')
    shown = json.loads(run("autoforward", "trust", str(folder), "--json", check=1).stdout)
    assert (shown["place"], [one["key"] for one in shown["requests"]]) == (os.path.realpath(folder), ["bind"])
    run("autoforward", "trust", str(folder), "--yes", check=0)
    run("autoforward", "trust", cwd=folder, check=0)
    assert "allowed: bind: 0.0.0.0" in run("autoforward", "trust", "--list", check=0).stdout
    run("autoforward", "trust", str(folder), "--revoke", check=0)
    assert run("autoforward", "trust", "--list", check=0).stdout == ""
    (folder / ".devcontainer" / "devcontainer.json").write_text("{")
    unread = run("autoforward", "trust", str(folder), check=2)
    assert "devcontainer.json:1:2: " in unread.stderr
    assert "asks for nothing" not in unread.stderr
    run("autoforward", "trust", "no-such-thing", check=4)
    run("autoforward", "trust", "--yes", "--list", check=2)

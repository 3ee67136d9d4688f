"""The agent on a real engine: where it runs, why it does not, that it is put there once, what its loss does to clients."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import tarfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from docker.types import Mount

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.images.recipes import HELPER_DIR
from tests.support.conformance import dial, is_watcher, read_all
from tests.support.containers import LABEL, Container, eventually, fetch, run_id
from tests.support.observing import (
    IMPATIENT,
    ask,
    begin_supervisor,
    free_port,
    logged,
    names,
    row_of,
    status_json,
    wait_event,
    wait_names,
)

pytestmark = pytest.mark.docker

AGENT_FILES = "ls /tmp/.autoforward/agent-*"


# -- images of these tests -----------------------------------------------------------------------


def _take_out(engine: docker.DockerClient, image: str, path: str) -> bytes:
    """A tar of one path of an image."""
    raw = engine.containers.create(image, ["true"], labels={LABEL: run_id()})
    try:
        return b"".join(raw.get_archive(path)[0])
    finally:
        raw.remove()


def _for_another_machine(saved: bytes, architecture: str, tag: str) -> bytes:
    """A saved image, as one that says it is for that architecture."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as source:
        [manifest] = json.load(source.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(source.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        layers = {name: source.extractfile(name).read() for name in manifest["Layers"]}  # type: ignore[union-attr]
    config["architecture"] = architecture
    manifest |= {"Config": "config.json", "RepoTags": [tag]}
    files = {"manifest.json": json.dumps([manifest]).encode(), "config.json": json.dumps(config).encode(), **layers}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Two more: `single` has one static program and nothing else at all; the others say they are for another machine."""
    tag = run_id()
    foreign = ("riscv64", "arm64" if os.uname().machine == "x86_64" else "amd64")
    made = {name: f"autoforward-test/{name}:{tag}" for name in ("single", *foreign)}
    program = _take_out(engine, images["busybox"], f"{HELPER_DIR}/httpd")
    engine.api.import_image_from_data(program, repository="autoforward-test/single", tag=tag)
    saved = b"".join(engine.images.get(images["busybox"]).save(named=True))
    for architecture in foreign:
        engine.images.load(_for_another_machine(saved, architecture, made[architecture]))
    try:
        yield {**images, **made}
    finally:
        for reference in made.values():
            engine.images.remove(reference, force=True)


def httpd(port: int) -> list[str]:
    """The command of a `single` container. The one page there is, is the program itself."""
    return ["/httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/"]


def read_program(host_port: int) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{host_port}/httpd", timeout=60) as answer:
        return bytes(answer.read())


# -- looking -------------------------------------------------------------------------------------


def session_of(run: Runner) -> dict[str, Any]:
    [session] = status_json(run)["sessions"]
    return dict(session)


def attach(run: Runner, app: Container, *arguments: str) -> dict[str, Any]:
    """What `status --json` says of its lane."""
    run("autoforward", "attach", app.name, *arguments, check=0)
    return dict(session_of(run)["lane"])


def agents(app: Container) -> list[int]:
    """Pids, as the container sees them, of what there is of agents, zombies included."""
    return [process.pid for process in app.processes() if is_watcher(process) or process.name.startswith("agent-")]


# -- where it runs, and why not ------------------------------------------------------------------


def test_container_of_one_static_program_that_may_do_nothing(
    engine: docker.DockerClient, images: Mapping[str, str], container: ContainerFactory, run: Runner
) -> None:
    """No shell, no network but its own loopback, no capability, no privilege to be had, an ordinary user."""
    port = free_port()
    restricted = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    app = container("single", httpd(port), network="none", user="1000", **restricted)
    assert attach(run, app)["name"] == "agent"
    row = row_of(run, port, status="active")
    assert row["lane"] == "agent"
    with tarfile.open(fileobj=io.BytesIO(_take_out(engine, images["single"], "/httpd"))) as tar:
        program = tar.extractfile("httpd").read()  # type: ignore[union-attr]
    assert hashlib.sha256(read_program(row["localPort"])).digest() == hashlib.sha256(program).digest()
    table = app.raw.top(ps_args="-eo pid,uid,args")["Processes"]
    assert [uid for _pid, uid, command in table if "/.autoforward/agent-" in command] == ["1000"]


@pytest.fixture
def noexec_volume(engine: docker.DockerClient) -> str:
    """Removed with everything that this run labelled."""
    options = {"type": "tmpfs", "device": "tmpfs", "o": "noexec"}
    return str(engine.volumes.create(driver_opts=options, labels={LABEL: run_id()}).name)


WRITABLE = {
    "tmpfs-on-tmp": {"tmpfs": {"/tmp": ""}},
    "tmpfs-mount-on-tmp": {"mounts": [Mount("/tmp", None, type="tmpfs")]},
    "read-only-with-a-volume": {"read_only": True, "volumes": ["/var/lib/data"]},
    "read-only-with-a-volume-and-tmpfs": {"read_only": True, "volumes": ["/var/lib/data"], "tmpfs": {"/tmp": ""}},
}


@pytest.mark.parametrize("options", WRITABLE.values(), ids=WRITABLE)
def test_agent_goes_where_there_is_a_place_for_it(
    container: ContainerFactory, run: Runner, options: Mapping[str, Any]
) -> None:
    app = container("full", user="dev", **options)
    assert attach(run, app)["name"] == "agent"
    server = app.start_server(port=free_port())
    assert fetch(row_of(run, server.port, status="active")["url"]) == "hello\n"


READ_ONLY = {
    "read-only": {},
    "read-only-with-tmpfs": {"tmpfs": {"/tmp": ""}},
}


@pytest.mark.parametrize("options", READ_ONLY.values(), ids=READ_ONLY)
def test_read_only_root_falls_to_the_next_lane_and_says_why(
    container: ContainerFactory, run: Runner, options: Mapping[str, Any]
) -> None:
    app = container("full", read_only=True, **options)
    lane = attach(run, app)
    assert lane["name"] == "socat"
    assert "not the agent" in lane["note"]
    assert "read-only" in lane["note"]
    server = app.start_server(port=free_port())
    row = row_of(run, server.port, status="active")
    assert row["lane"] == "socat"
    assert fetch(row["url"]) == "hello\n"


def test_place_that_is_not_executable_is_not_the_last_one_tried(
    container: ContainerFactory, run: Runner, noexec_volume: str
) -> None:
    mounts = {"read_only": True, "volumes": {noexec_volume: {"bind": "/tmp", "mode": "rw"}}}
    app = container("full", **mounts)
    lane = attach(run, app)
    assert lane["name"] == "socat"
    assert "permission denied" in lane["note"]
    assert "/tmp/.autoforward/agent-" in lane["note"], "where it was tried"
    run("autoforward", "detach", app.name, check=0)
    other = container("full", volumes={noexec_volume: {"bind": "/tmp", "mode": "rw"}})
    assert attach(run, other)["name"] == "agent"
    assert other.shell("ls -d /.autoforward/agent-*").count("\n") == 1


def test_read_only_root_without_any_tool_fails_with_every_reason(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container("single", httpd(port), read_only=True)
    done = run("autoforward", "attach", app.name)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    session = session_of(run)
    assert (session["state"], session["lane"]) == ("failed", None)
    for said in (done.stderr, session["problem"]):
        assert "no shell" in said
        assert "the agent cannot be put into the container" in said
        assert "read-only" in said


@pytest.mark.parametrize("labelled", ["riscv64", "arm64" if os.uname().machine == "x86_64" else "amd64"])
def test_image_that_says_it_is_for_another_machine_is_not_believed(
    container: ContainerFactory, run: Runner, labelled: str
) -> None:
    app = container(labelled)
    assert attach(run, app)["name"] == "agent"
    [path] = app.shell(AGENT_FILES).split()
    assert app.shell(f"{path} --version") == "autoforward-agent protocol 1\n"


def test_container_whose_working_directory_and_user_are_gone(container: ContainerFactory, run: Runner) -> None:
    """As an entrypoint leaves it: processes are started in `/`, by the number that its first one has."""
    port = free_port()
    app = container(
        "full",
        ["sh", "-c", f"exec python3 {HELPER_DIR}/server.py http --port {port}"],
        user="dev",
        working_dir="/gone/here",
    )
    app.exec(["sh", "-c", "cd /; rm -rf /gone; sed -i /^dev:/d /etc/passwd"], user="root")
    code, _said = app.exec(["true"])
    assert code != 0, "nothing of this kind is left that an exec could go by"
    doctor = json.loads(run("autoforward", "doctor", app.name, "--json").stdout)
    probed = {finding["id"]: finding for finding in doctor}
    assert "lacks" in probed["lane-socat"]["text"], "its tools were found"
    assert attach(run, app)["name"] == "agent"
    assert fetch(row_of(run, port, status="active")["url"]) == "hello\n"
    after = {finding["id"]: finding for finding in json.loads(run("autoforward", "doctor", app.name, "--json").stdout)}
    assert after["lane-agent"]["status"] == "ok"
    table = app.raw.top(ps_args="-eo pid,uid,args")["Processes"]
    assert [uid for _pid, uid, command in table if "/.autoforward/agent-" in command] == ["1000"]
    run("autoforward", "detach", app.name, check=0)
    assert attach(run, app, "--lane", "socat")["name"] == "socat"
    assert fetch(row_of(run, port, status="active")["url"]) == "hello\n"
    run("autoforward", "detach", app.name, check=0)
    said_after = {row["id"]: row for row in json.loads(run("autoforward", "doctor", app.name, "--json").stdout)}
    assert "it is there, and runs" in said_after["lane-agent"]["text"]


# -- put there once ------------------------------------------------------------------------------


def test_agent_is_put_there_once(container: ContainerFactory, run: Runner) -> None:
    app = container("full")
    attach(run, app)
    [path] = app.shell(AGENT_FILES).split()
    assert app.shell(f"stat -c '%a %u' {path}").split() == ["755", "0"]
    before = app.shell(f"stat -c '%i %z' {path}")
    run("autoforward", "detach", app.name, check=0)
    eventually(lambda: not agents(app))
    attach(run, app)
    assert app.shell(f"stat -c '%i %z' {path}") == before, "uploaded again"
    # One that was cut short is not taken for it.
    run("autoforward", "detach", app.name, check=0)
    eventually(lambda: not agents(app))
    app.shell(f"rm {path}; echo no agent >{path}; chmod 755 {path}")
    assert attach(run, app)["name"] == "agent"
    assert app.shell(AGENT_FILES).split() == [path]
    assert int(app.shell(f"stat -c %s {path}")) > 1000


def test_connections_start_no_process(engine: docker.DockerClient, container: ContainerFactory, run: Runner) -> None:
    app = container("full")
    server = app.start_server("echo", port=free_port())
    assert attach(run, app)["name"] == "agent"
    host_port = row_of(run, server.port, status="active")["localPort"]
    started_s = time.time()
    for number in range(200):
        with dial(host_port) as client:
            assert ask(client, b"%d\n" % number, ends=b"\n") == b"%d\n" % number
    ended_s = time.time()
    app.shell("true")
    filters = {"container": app.id, "type": "container"}
    stream = engine.events(since=int(started_s) - 1, until=int(time.time()) + 2, filters=filters, decode=True)
    created = [event["timeNano"] / 1e9 for event in stream if event["Action"].startswith("exec_create")]
    assert [at_s for at_s in created if started_s <= at_s <= ended_s] == []
    assert any(at_s > ended_s for at_s in created), "the count does count"


# -- losses --------------------------------------------------------------------------------------


def test_agent_that_is_killed_is_replaced(container: ContainerFactory, run: Runner, home: Path) -> None:
    """Its connections are reset, not ended as if they were complete; the host port stays."""
    app = container("full")
    server = app.start_server("echo", port=free_port())
    attach(run, app)
    host_port = row_of(run, server.port, status="active")["localPort"]
    clients = [dial(host_port) for _ in range(20)]
    for client in clients:
        ask(client, b"x\n", ends=b"\n")
    [pid] = agents(app)
    code, said = app.exec(["sh", "-c", f"kill -9 {pid}"], user="root")
    assert code == 0, said
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            read_all(client)
    # Nobody asks for it: the port answers, by way of a new agent.
    with dial(host_port) as client:
        assert ask(client, b"again\n", ends=b"\n") == b"again\n"
    [anew] = agents(app)
    assert anew != pid
    assert "unforwarded" not in names(logged(home, server.port))
    assert row_of(run, server.port, status="active")["localPort"] == host_port


def test_supervisor_that_is_killed_leaves_no_agent(container: ContainerFactory, run: Runner, home: Path) -> None:
    """Nor a zombie of one, in a container whose PID 1 reaps nobody; also while the server takes nothing."""
    app = container("full")
    server = app.start_server("ignores-eof", port=free_port())
    attach(run, app)
    host_port = row_of(run, server.port, status="active")["localPort"]
    clients = [dial(host_port) for _ in range(10)]
    for client in clients:
        client.sendall(b"hello")
    assert len(agents(app)) == 1
    supervisor = supervisor_of(home)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    psutil.wait_procs([supervisor], timeout=10)
    killed_s = time.monotonic()
    eventually(lambda: not agents(app), timeout_s=10)
    took_s = time.monotonic() - killed_s
    assert took_s < 2.0
    assert app.processes(of_tests=False) == []
    for client in clients:
        client.close()
    # The next command brings it all back.
    run("autoforward", "list", check=0)
    assert row_of(run, server.port, status="active")["localPort"] == host_port


def test_restart_of_the_container_gets_a_new_agent(container: ContainerFactory, run: Runner) -> None:
    port = free_port()
    app = container("single", httpd(port), network="none")
    attach(run, app)
    row = row_of(run, port, status="active")
    program = read_program(row["localPort"])
    app.restart()

    def answers() -> bool:
        try:
            return read_program(row["localPort"]) == program
        except OSError:
            return False

    # No event is waited for: a container that is back before its loss was noticed is no news.
    eventually(answers, timeout_s=20, what="the server behind its new agent")
    again = row_of(run, port, status="active")
    assert (again["localPort"], again["id"], again["lane"]) == (row["localPort"], row["id"], "agent")


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_pause_is_no_loss(container: ContainerFactory, run: Runner, home: Path, lane: str) -> None:
    """Also one that is longer than the time after which an agent or a watcher that says nothing is given up."""
    begin_supervisor(home, IMPATIENT)
    app = container("full")
    server = app.start_server("echo", port=free_port())
    assert attach(run, app, "--lane", lane)["name"] == lane
    pids = [process.pid for process in app.processes() if is_watcher(process)]
    with dial(row_of(run, server.port, status="active")["localPort"]) as client:
        ask(client, b"before\n", ends=b"\n")
        app.raw.pause()
        try:
            wait_event(home, "reconnecting", server.port)
            time.sleep(4)  # beyond all limits of this supervisor
        finally:
            app.raw.unpause()
        assert ask(client, b"after\n", ends=b"\n") == b"after\n"
    with socket.create_connection(("127.0.0.1", row_of(run, server.port)["localPort"]), timeout=20) as client:
        assert ask(client, b"new\n", ends=b"\n") == b"new\n"
    row_of(run, server.port, status="active")
    assert [process.pid for process in app.processes() if is_watcher(process)] == pids
    wait_names(home, server.port, ["forwarded", "reconnecting", "reconnected"])

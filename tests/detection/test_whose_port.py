"""Whose a port is: servers of another user than root, containers that are left in an old namespace, and our own listeners."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, missing, script
from tests.support.containers import Container, eventually, fetch
from tests.support.observing import dev_container_labels, free_port, logged, names, new_folder, row_of, rows, wait_event

pytestmark = pytest.mark.docker

LISTEN = "import socket,time;s=[socket.create_server(('127.0.0.1',{port}))];time.sleep(600)"
USER = "1000:1000"

# As a user of the container: everything that could reach into a process, tried on the agent for as long as it runs.
SPY = """
import os, sys, time
end, could = time.monotonic() + 4, set()
def tries(pid):
    yield "signal", lambda: os.kill(pid, 0)
    for name in ("fd", "map_files"):
        yield name, lambda: os.listdir(f"/proc/{pid}/{name}")
    for name in ("mem", "environ", "maps"):
        yield name, lambda: open(f"/proc/{pid}/{name}", "rb").read(1)
looked = 0
while time.monotonic() < end:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if b"/.autoforward/agent-" not in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0")[0]:
                continue
        except OSError:
            continue
        looked += 1
        for name, attempt in tries(int(pid)):
            try:
                attempt()
                could.add(name)
            except OSError:
                pass
print(looked > 100, sorted(could), flush=True)
"""


def serve_as(app: Container, user: str, port: int, program: str = "/tmp/tool/app") -> None:
    """Python under another name, of this user, listening on that port."""
    app.shell(f"mkdir -p $(dirname {program}) && ln -sf $(command -v python3) {program}")
    app.raw.exec_run([program, "-c", LISTEN.format(port=port)], user=user, detach=True)


PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")


@pytest.fixture(params=[None, "1", "2"], ids=["as it is", "ptrace_scope 1", "ptrace_scope 2"])
def ptrace_scope(request: pytest.FixtureRequest) -> Iterator[None]:
    """Who may look into a process: its parents, or only who may trace any; as it was afterwards. It is the engine's kernel's."""
    if request.param is None:
        yield
        return
    if not PTRACE_SCOPE.exists():
        pytest.skip("this kernel has no yama: there is no ptrace_scope")
    before = PTRACE_SCOPE.read_text()
    try:
        PTRACE_SCOPE.write_text(request.param)
    except OSError as error:
        pytest.skip(f"ptrace_scope is {before.strip()} here, and cannot be {request.param}: {error.strerror}")
    try:
        yield
    finally:
        PTRACE_SCOPE.write_text(before)


@pytest.mark.usefixtures("ptrace_scope")
def test_servers_of_another_user_in_a_roots_container(container: ContainerFactory, run: Runner, home: Path) -> None:
    """Nearly all published dev container images: root, `remoteUser` is somebody else."""
    folder = new_folder()
    labels = dev_container_labels(folder, portsAttributes={"tool/ignored": {"onAutoForward": "ignore"}})
    app = container(labels=labels)
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    mine, ignored, editors, roots = (free_port() for _ in range(4))
    serve_as(app, "root", roots)
    serve_as(app, USER, ignored, "/tmp/tool/ignored")
    serve_as(app, USER, editors, "/home/node/.vscode-server/bin/0123456789abcdef/node")
    serve_as(app, USER, mine)
    assert row_of(run, mine, status="active")["process"].startswith("/tmp/tool/app -c")
    assert row_of(run, roots, status="active")["process"].startswith("/tmp/tool/app -c")
    assert row_of(run, ignored, status="ignored")["reason"] == "onAutoForward is ignore"
    assert row_of(run, editors, status="ignored")["reason"].startswith("an editor's own server (VS Code")
    assert {*names(logged(home, ignored)), *names(logged(home, editors))} == {"ignored"}


def test_the_agent_is_out_of_reach_while_it_looks_as_another_user(container: ContainerFactory, run: Runner) -> None:
    app = container()
    serve_as(app, USER, free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    # Each change of the sockets is another look through all processes, as their users.
    flood = (
        "import os, socket, time\nend = time.monotonic() + 8\n"
        "while time.monotonic() < end:\n    s = socket.create_server(('127.0.0.1', 0)); time.sleep(.05); s.close()"
    )
    app.raw.exec_run(["python3", "-c", flood], user=USER, detach=True)
    assert app.exec(["python3", "-c", SPY], user=USER) == (0, "True []\n")


def test_without_setuid_whose_a_port_is_stays_unknown(container: ContainerFactory, run: Runner) -> None:
    app = container(cap_drop=["SETUID"])
    port = free_port()
    serve_as(app, USER, port)
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    assert row_of(run, port, status="active")["process"] is None


def test_a_container_that_is_left_in_an_old_namespace_has_its_own_ports(
    container: ContainerFactory, run: Runner
) -> None:
    """`network_mode: service:app`, and `app` is restarted."""
    shared, published, host_port = free_port(), free_port(), free_port()
    app = container(ports={f"{published}/tcp": ("127.0.0.1", host_port)})
    sidecar = container(network=f"container:{app.id}")
    sidecar.start_server(port=shared, text="of the sidecar")
    sidecar.start_server(bind="0.0.0.0", port=published, text="of the sidecar")
    run("autoforward", "attach", app.name, check=0)
    run("autoforward", "attach", sidecar.name, check=0)
    assert "same network namespace" in row_of(run, shared, sidecar.name, status="ignored")["reason"]
    app.restart()
    app.start_server(port=shared, text="of the app")
    own = row_of(run, shared, sidecar.name, status="active")
    assert fetch(own["url"]) == "of the sidecar\n"
    assert fetch(row_of(run, shared, app.name, status="active")["url"]) == "of the app\n"
    # What the engine publishes leads into the new namespace.
    assert fetch(row_of(run, published, sidecar.name, status="active")["url"]) == "of the sidecar\n"
    run("autoforward", "detach", app.name, check=0)
    assert fetch(row_of(run, shared, sidecar.name, status="active")["url"]) == "of the sidecar\n"


def test_the_restart_of_a_container_without_a_session_is_seen_by_who_uses_its_network(
    container: ContainerFactory, run: Runner
) -> None:
    port, host_port = free_port(), free_port()
    app = container(ports={f"{port}/tcp": ("127.0.0.1", host_port)})
    sidecar = container(network=f"container:{app.id}")
    sidecar.start_server(bind="0.0.0.0", port=port)
    run("autoforward", "attach", sidecar.name, check=0)
    assert row_of(run, port, status="published")["localPort"] == host_port
    app.restart()
    row = row_of(run, port, status="active")
    assert fetch(row["url"]) == "hello\n"
    sidecar.restart()
    sidecar.start_server(bind="0.0.0.0", port=port)
    assert row_of(run, port, status="published")["localPort"] == host_port


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_supervisor_in_its_own_container_forwards_nothing(
    container: ContainerFactory, run: Runner, home: Path, lane: str
) -> None:
    """autoforward in a dev container that has the engine's socket, attached to that container: its listeners are in it."""
    if os.getuid() != 0 or shutil.which("nsenter") is None:
        missing("a namespace is entered by root, with nsenter")
    app, other = container(), container()
    app.raw.reload()
    inside = ("nsenter", "-t", str(app.raw.attrs["State"]["Pid"]), "-n", script("autoforward"))
    port, others = free_port(), free_port()
    app.start_server(port=port)
    done = run(*inside, "attach", app.name, "--lane", lane, str(port), check=0)
    assert "its ports are here already" in done.stdout + done.stderr
    # Of another container it forwards; that listener is in the first one now.
    other.start_server(port=others)
    run(*inside, "attach", other.name, check=0)
    wait_event(home, "forwarded", others)
    second = free_port()
    app.start_server(port=second)
    later = other.start_server(port=free_port())
    wait_event(home, "forwarded", later.port)
    listed = rows(run)
    assert {row["port"] for row in listed if row["containerName"] == other.name} == {others, later.port}
    assert {(row["port"], row["status"]) for row in listed if row["containerName"] == app.name} == {
        (port, "ignored"),
        (None, "ignored"),
    }


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_two_servers_on_one_number_are_picked_by_the_address_of_the_client(
    container: ContainerFactory, run: Runner, lane: str
) -> None:
    app = container(sysctls={"net.ipv6.conf.all.disable_ipv6": "0"})
    port = free_port()
    app.start_server(bind="127.0.0.1", port=port, text="four")
    six = app.start_server(bind="::1", port=port, text="six")
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    host_port = row_of(run, port, status="active")["localPort"]
    for _ in range(2):
        assert fetch(f"http://[::1]:{host_port}") == "six\n"
        assert fetch(f"http://127.0.0.1:{host_port}") == "four\n"
    six.stop()
    # Once there is one, both lead to it.
    eventually(lambda: fetch(f"http://[::1]:{host_port}") == "four\n", what="the other server")

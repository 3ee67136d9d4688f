"""The fixtures themselves: what other tests take for granted."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ContainerFactory, Runner, end_everything_of, supervisor_of
from tests.images.recipes import ARM64, IMAGE_NAMES
from tests.support.containers import ComposeProject, eventually, is_refused
from tests.support.observing import free_port, row_of, rows, status_json

pytestmark = pytest.mark.docker

TOOLS = ("bash", "socat", "nc", "ncat", "python3", "perl", "busybox")


@pytest.mark.parametrize(
    ("image", "there"),
    [
        ("full", {"bash", "socat", "nc", "ncat", "python3"}),
        ("openbsd", {"nc", "python3"}),
        ("traditional", {"nc", "python3"}),
        ("ncat", {"nc", "ncat", "python3"}),
        ("devtcp", {"bash", "python3"}),
        ("nolane", set()),
        ("busybox", {"nc", "busybox"}),
    ],
)
def test_image_has_these_tools_and_no_others(container: ContainerFactory, image: str, there: set[str]) -> None:
    one = container(image)
    found = {tool for tool in TOOLS if one.exec(["sh", "-c", f"command -v {tool}"])[0] == 0}
    assert found == there
    assert one.exec(["id", "-u"], user="dev") == (0, "1000\n")


def test_every_image_has_a_row_above() -> None:
    [mark] = [m for m in test_image_has_these_tools_and_no_others.pytestmark if m.name == "parametrize"]
    assert {row[0] for row in mark.args[1]} == set(IMAGE_NAMES)


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_server_listens_on_the_address_asked_for(container: ContainerFactory, bind: str) -> None:
    one = container(sysctls={"net.ipv6.conf.all.disable_ipv6": "0"})
    server = one.start_server("echo", bind=bind)
    table = one.shell("cat /proc/net/tcp /proc/net/tcp6")
    assert f":{server.port:04X} " in table
    assert [p.pid for p in one.processes(of_tests=False)] == []
    assert server.pid in [p.pid for p in one.processes()]
    server.stop()
    assert f":{server.port:04X} " not in one.shell("cat /proc/net/tcp /proc/net/tcp6 | grep ' 0A ' || true")


@pytest.mark.parametrize("image", ["busybox", "nolane"])
def test_httpd_where_there_is_no_python(container: ContainerFactory, image: str) -> None:
    one = container(image)
    server = one.start_server(bind="0.0.0.0", port=8080)
    with socket.create_connection((one.address(), 8080), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"hello from busybox" in connection.makefile("rb").read()
    server.stop()
    assert is_refused(one.address(), 8080)


def test_behaviours_of_the_test_server(container: ContainerFactory) -> None:
    one = container()
    late = one.start_server("late-answer", bind="0.0.0.0", delay_s=0.1)
    with socket.create_connection((one.address(), late.port), timeout=10) as connection:
        connection.sendall(b"abc")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read().startswith(b"got 3 ba7816bf")
    first = one.start_server("closes-first", bind="0.0.0.0", text="bye")
    with socket.create_connection((one.address(), first.port), timeout=10) as connection:
        assert connection.makefile("rb").read() == b"bye\n"
    sha = one.start_server("sha", bind="0.0.0.0")
    with socket.create_connection((one.address(), sha.port), timeout=10) as connection:
        connection.sendall(b"put 3\nabc")
        assert connection.makefile("rb").read(8) == b"ba7816bf"


def test_zombies_are_seen(container: ContainerFactory) -> None:
    """PID 1 is `sleep` and reaps nothing: an orphan that ends stays as a zombie, and the table shows it."""
    one = container()
    one.shell("(sleep 0.1 &) >/dev/null 2>&1")
    zombies = eventually(lambda: [p for p in one.processes() if p.state == "Z"], what="a zombie")
    assert {(p.ppid, p.name) for p in zombies} == {(1, "sleep")}


def test_network_has_the_engines_dns(container: ContainerFactory, network: Callable[[], str]) -> None:
    one = container(network=network())
    assert "0B00007F:" in one.shell("cat /proc/net/tcp")


def test_container_without_network(container: ContainerFactory) -> None:
    one = container(network="none")
    assert one.start_server("http").port > 0


@pytest.mark.compose
def test_compose_project(compose_project: ComposeProject) -> None:
    app = compose_project.container("app")
    code = "import socket; print(socket.create_connection(('db', 5432)).makefile().read())"
    assert app.exec(["python3", "-c", code]) == (0, "hello from db\n\n")


def test_images_are_cached(images: Mapping[str, str]) -> None:
    assert set(images) == {*IMAGE_NAMES, ARM64}


def test_run_gives_the_exit_status(run: Runner) -> None:
    assert run("python3", "-c", "import os; print(os.environ['AUTOFORWARD_HOME'])", check=0).stdout.startswith("/")


def test_rows_and_status_are_what_the_commands_print(container: ContainerFactory, run: Runner) -> None:
    assert rows(run) == json.loads(run("autoforward", "list", "--json", check=0).stdout) == []
    assert status_json(run) == json.loads(run("autoforward", "status", "--json", check=0).stdout)
    app = container()
    server = app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    row_of(run, server.port, status="active")
    for target in (None, app.name):
        printed = json.loads(run("autoforward", "list", "--json", *filter(None, [target]), check=0).stdout)
        assert [{**row, "ageSeconds": 0} for row in rows(run, target)] == [{**row, "ageSeconds": 0} for row in printed]
    with pytest.raises(AssertionError, match="exit"):
        rows(run, "no-such-container")
    printed = json.loads(run("autoforward", "status", "--json", check=0).stdout)
    assert {**status_json(run), "uptime_s": 0} == {**printed, "uptime_s": 0}


def test_a_forked_command_is_what_its_script_is(container: ContainerFactory, run: Runner, tmp_path: Path) -> None:
    """tests/support/fork_server.py: status, stdout and stderr, of what succeeds and what fails, with input and in a folder."""
    app = container()
    app.start_server(port=free_port())
    run("autoforward", "attach", app.name, check=0)
    eventually(lambda: {row["status"] for row in rows(run)} == {"active"})
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["autoforward", "list"], {"env": {"COLUMNS": "70", "FORCE_COLOR": "1"}}),
        (["autoforward", "attach", "no-such-container"], {}),
        (["autoforward", "attach", "."], {"cwd": tmp_path}),
        (["autoforward", "list"], {"env": {"AUTOFORWARD_HOME": "/dev/null/none"}}),
        (["autoforward", "nonsense"], {}),
        (["autoforward", "--version"], {}),
        (["autoforward", "attach", app.name], {"env": {"LC_ALL": "C", "AUTOFORWARD_LANES": "nonsense"}}),
        (["devup", "--help"], {"input": "y\n"}),
        (["devdown", "--workspace-folder", str(tmp_path)], {}),
    ]
    for argv, more in cases:
        real, forked = (run(*argv, **more, real=real) for real in (True, False))
        assert (real.returncode, real.stdout, real.stderr) == (forked.returncode, forked.stdout, forked.stderr), argv


def _start_of(process: psutil.Process) -> dict[str, object]:
    """What a supervisor has of whoever started it."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return {
        "argv": process.cmdline()[:-1],
        "environment": process.environ(),
        "name": process.name(),
        "folder": process.cwd(),
        "terminal": process.terminal(),
        "streams": [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)],
        "limits": Path(f"/proc/{process.pid}/limits").read_text(),
        "child of the test": process.ppid() == os.getpid(),
        "session of the test": os.getsid(process.pid) == os.getsid(0),
        **{name: status[name].strip() for name in ("Umask", "SigBlk", "SigIgn", "SigCgt", "Groups", "CapEff")},
    }


def test_a_forked_supervisor_is_what_a_started_one_is(
    container: ContainerFactory, run: Runner, home: Path, tmp_path: Path
) -> None:
    app = container()
    found = []
    for real in (True, False):
        run("autoforward", "attach", app.name, check=0, cwd=tmp_path, env={"OF_THE_COMMAND": "1"}, real=real)
        process = supervisor_of(home)
        assert process is not None
        found.append(_start_of(process))
        run("autoforward", "detach", "--all", check=0)
        end_everything_of(home)
    assert found[0] == found[1]
    assert found[0]["folder"] == "/"

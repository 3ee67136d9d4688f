"""An engine over ssh, beyond what every engine has to do: logins are counted, the link is cut, and nothing is asked."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from autoforward.core.model import EngineEndpoint
from autoforward.engine.ssh import SshTransport
from tests.conftest import Runner, supervisor_of
from tests.support.conformance import IPV6_ON, dial
from tests.support.containers import Container, Server, eventually
from tests.support.engines.sshd import Sshd
from tests.support.engines.ways import WAYS, Reached
from tests.support.observing import logged, rows, status_json, wait_event

pytestmark = pytest.mark.docker

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def reached(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reached]:
    with WAYS["ssh"](engine, images) as one:
        yield one


@pytest.fixture(scope="module")
def sshd(reached: Reached) -> Sshd:
    assert isinstance(reached.far, Sshd)
    return reached.far


@pytest.fixture(scope="module")
def box(reached: Reached) -> Iterator[Container]:
    with reached.containers() as container:
        yield container("full", sysctls=IPV6_ON)


@pytest.fixture(scope="module")
def echo(box: Container) -> Server:
    return box.start_server("echo")


@pytest.fixture
def ssh_run(reached: Reached, home: Path) -> Runner:
    return Runner(home, reached.env)


def session(run: Runner) -> dict[str, Any]:
    [one] = status_json(run)["sessions"]
    return dict(one)


def port_of(run: Runner, server: Server) -> int:
    def forwarded() -> int:
        [row] = [row for row in rows(run) if row["port"] == server.port]
        assert row["status"] == "active"
        return int(row["localPort"])

    return eventually(forwarded, timeout_s=TIMEOUT_S)


def asks(host_port: int, text: bytes) -> bytes:
    with dial(host_port) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
        return answer


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_connections_take_no_login_of_their_own(
    ssh_run: Runner, sshd: Sshd, box: Container, echo: Server, lane: str
) -> None:
    """200 on the agent, which are one stream; 20 at once where each takes an exec (more than sshd allows sessions)."""
    ssh_run("autoforward", "attach", box.name, "--lane", lane, check=0)
    host_port = port_of(ssh_run, echo)
    logins = sshd.logins
    count = 200 if lane == "agent" else 20
    answers: dict[int, bytes] = {}

    def talk(number: int) -> None:
        answers[number] = asks(host_port, b"%d" % number)

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert answers == {number: b"%d" % number for number in range(count)}
    assert sshd.logins == logins


def test_a_link_that_is_cut_comes_back_with_the_same_ports(
    ssh_run: Runner, sshd: Sshd, box: Container, echo: Server, home: Path
) -> None:
    ssh_run("autoforward", "attach", box.name, check=0)
    host_port = port_of(ssh_run, echo)
    # The machine there is away for a moment; then it is there, and only the login was cut.
    for end, begin in ((sshd.stop, sshd.start), (sshd.cut, lambda: None)):
        since = logged(home)[-1]["seq"]
        end()
        lost = wait_event(home, "reconnecting", echo.port, since=since, timeout_s=TIMEOUT_S)
        assert lost["localPort"] == host_port
        begin()
        began_s = time.monotonic()
        back = wait_event(home, "reconnected", echo.port, since=since, timeout_s=TIMEOUT_S)
        print(f"the link was back after {time.monotonic() - began_s:.1f} s")
        assert back["localPort"] == host_port
        assert asks(host_port, b"after") == b"after"
        assert port_of(ssh_run, echo) == host_port


def test_a_login_that_fails_says_so_in_sshs_words_and_asks_nobody(ssh_run: Runner, sshd: Sshd, box: Container) -> None:
    no_key = ssh_run("autoforward", "attach", box.name, env={"SSH_AUTH_SOCK": None})
    assert no_key.returncode == 3
    assert sshd.host in no_key.stderr
    assert "Permission denied (publickey)" in no_key.stderr
    assert "without asking" in no_key.stderr
    known = (sshd.folder / "known_hosts").read_text()
    (sshd.folder / "known_hosts").write_text("")
    try:
        unknown = ssh_run("autoforward", "attach", box.name)
    finally:
        (sshd.folder / "known_hosts").write_text(known)
    assert unknown.returncode == 3
    assert "Host key verification failed" in unknown.stderr
    findings = json.loads(ssh_run("autoforward", "doctor", "--json", env={"SSH_AUTH_SOCK": None}).stdout)
    [finding] = [one for one in findings if one["id"] == "engine"]
    assert finding["status"] == "fail"
    assert "Permission denied (publickey)" in finding["text"]
    assert "without asking" in finding["hint"]
    keys = (sshd.folder / "authorized_keys").read_text()
    (sshd.folder / "authorized_keys").write_text(f"restrict {keys}")
    try:
        no_forwards = ssh_run("autoforward", "attach", box.name)
    finally:
        (sshd.folder / "authorized_keys").write_text(keys)
    assert no_forwards.returncode == 3
    assert "does not open /var/run/docker.sock" in no_forwards.stderr


def test_a_login_that_answers_no_more_is_given_up_when_it_is_asked(
    reached: Reached, sshd: Sshd, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """As after a sleep: nothing has told ssh that the other side is gone."""
    monkeypatch.setenv("AUTOFORWARD_HOME", str(home))
    ssh = str(sshd.folder / "bin/ssh")
    link = SshTransport(EngineEndpoint(sshd.host, "a test", ssh_auth_sock=str(sshd.auth_sock)), lambda: None, ssh)
    try:
        link.sdk_url()
        logins = sshd.logins
        link.check(TIMEOUT_S)
        link.sdk_url()
        assert sshd.logins == logins, "one that answers is kept"
        with sshd.frozen():
            link.check(1.0)
        link.sdk_url()
        assert sshd.logins == logins + 1
    finally:
        link.close()


def test_a_killed_supervisor_is_followed_by_one_that_logs_in_with_the_same_agent(
    reached: Reached, sshd: Sshd, box: Container, echo: Server, home: Path
) -> None:
    """The next command's shell may have another engine and no agent at all: the session has its own."""
    Runner(home, reached.env)("autoforward", "attach", box.name, check=0)
    host_port = port_of(Runner(home, reached.env), echo)
    supervisor = supervisor_of(home)
    assert supervisor is not None
    supervisor.kill()
    supervisor.wait(10)
    elsewhere = Runner(home, {**reached.env, "DOCKER_HOST": "unix:///nonexistent/other.sock", "SSH_AUTH_SOCK": None})
    assert port_of(elsewhere, echo) == host_port
    assert session(elsewhere)["engine"] == sshd.host
    assert asks(host_port, b"restored") == b"restored"

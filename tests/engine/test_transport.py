"""Ways to an engine, with programs of the tests' own in place of ssh and docker."""

from __future__ import annotations

import grp
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from docker.errors import DockerException

from autoforward.core.errors import EngineUnreachableError
from autoforward.core.model import EngineEndpoint, TlsFiles
from autoforward.engine.client import Engine
from autoforward.engine.endpoint import way_to_socket
from autoforward.engine.ssh import DEFAULT_SOCKET, SshTransport
from autoforward.engine.transport import DirectTransport, TlsTransport, connect, transport_to
from autoforward.net.child_socket import ChildSocket
from tests.support.containers import eventually

pytestmark = pytest.mark.unit

TIMEOUT_S = 30.0

READY = "echo autoforward-ready\nexec cat\n"


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Writes a program of shell; its arguments and what of its environment matters go to `argv` first, a run a line."""

    def write(text: str) -> str:
        path = tmp_path / "program"
        path.write_text(f'#!/bin/sh\necho "$SSH_AUTH_SOCK $*" >>{tmp_path}/argv\n{text}')
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def link(
    program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., SshTransport]]:
    monkeypatch.setenv("AUTOFORWARD_HOME", str(tmp_path / "home"))
    made = []

    def make(text: str, host: str = "ssh://me@there:2222", on_up: Callable[[], None] = lambda: None) -> SshTransport:
        made.append(SshTransport(EngineEndpoint(host, "a test", ssh_auth_sock="/agent"), on_up, program(text)))
        return made[-1]

    yield make
    for one in made:
        one.close()


class CountingLock:
    """How many have come to it so far."""

    def __init__(self) -> None:
        self.came = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *_exc: object) -> None:
        self._lock.release()


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "argv").read_text().splitlines()


def test_each_kind_of_endpoint_has_its_link() -> None:
    def of(host: str, tls: TlsFiles | None = None) -> type:
        one = transport_to(EngineEndpoint(host, "a test", tls), lambda: None)
        one.close()
        return type(one)

    assert of("unix:///x") is DirectTransport
    assert of("tcp://x:1") is DirectTransport
    assert of("tcp://x:1", TlsFiles(None, None, None)) is TlsTransport
    assert of("ssh://x") is SshTransport


def test_ssh_logs_in_once_with_the_sessions_agent_and_asks_nothing(
    link: Callable[..., SshTransport], tmp_path: Path
) -> None:
    ups: list[None] = []
    one = link(READY, on_up=lambda: ups.append(None))
    urls = [one.sdk_url() for _ in range(3)]
    assert len(set(urls)) == 1
    [call] = calls(tmp_path)
    assert call.startswith("/agent -T ")
    for part in ("-o BatchMode=yes", "-o ServerAliveInterval=5", "-p 2222 -l me", f":{DEFAULT_SOCKET} -- there docker"):
        assert part in call
    assert len(ups) == 1


def test_ssh_is_told_where_the_engine_is_there(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    one = link(
        'case "$*" in *"docker context"*) echo "autoforward-engine unix:///run/user/7/docker.sock";; esac\n' + READY
    )
    one.sdk_url()
    first, then = calls(tmp_path)
    assert f":{DEFAULT_SOCKET} --" in first
    assert ":/run/user/7/docker.sock -- there echo" in then


def test_a_path_in_the_url_is_not_asked_for(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    link(READY, "ssh://there/run/podman.sock").sdk_url()
    [call] = calls(tmp_path)
    assert ":/run/podman.sock -- there echo" in call
    assert "-p" not in call.split()
    assert "-l" not in call.split()


@pytest.mark.parametrize(
    ("text", "error_text"),
    [
        ("echo 'me@there: Permission denied (publickey).' >&2\nexit 255\n", "Permission denied (publickey)"),
        ("exit 255\n", "ended before it had logged in"),
        ("echo autoforward-engine tcp://10.0.0.1:2375\nexec cat\n", "tcp://10.0.0.1:2375"),
        ("head -c 100000 /dev/zero\nexec cat\n", "no shell"),
    ],
)
def test_failure_of_ssh_is_said_with_its_reason(link: Callable[..., SshTransport], text: str, error_text: str) -> None:
    with pytest.raises(EngineUnreachableError) as caught:
        link(text).sdk_url()
    assert "ssh://me@there:2222 (from a test)" in str(caught.value)
    assert error_text in str(caught.value)
    assert "BatchMode" in str(caught.value.hint)


def test_missing_ssh_command_is_an_error(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    one = link(READY)
    (tmp_path / "program").unlink()
    with pytest.raises(EngineUnreachableError, match="cannot run ssh"):
        one.sdk_url()


def test_waiters_for_a_login_that_fails_do_not_each_try_one(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    one = link(f"read line <{tmp_path}/gate\necho no >&2\nexit 255\n")
    lock = CountingLock()
    one._lock = lock  # type: ignore[assignment]
    came: list[str] = []

    def try_it() -> None:
        with pytest.raises(EngineUnreachableError) as caught:
            one.sdk_url()
        came.append(str(caught.value))

    threads = [threading.Thread(target=try_it) for _ in range(5)]
    for thread in threads:
        thread.start()
    eventually(lambda: lock.came == 5, timeout_s=TIMEOUT_S)
    (tmp_path / "gate").write_text("go\n")
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(came) == 5
    assert len(set(came)) == 1
    assert len(calls(tmp_path)) == 1


def test_a_login_that_ended_is_made_anew_with_the_agent_of_now(
    link: Callable[..., SshTransport], tmp_path: Path
) -> None:
    one = link(f"echo $$ >{tmp_path}/pid\n{READY}")
    url = one.sdk_url()
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 9)
    one.endpoint = EngineEndpoint("ssh://me@there:2222", "a test", ssh_auth_sock="/another")
    eventually(lambda: not psutil.pid_exists(pid), timeout_s=TIMEOUT_S)
    assert one.sdk_url() == url
    assert [call.split()[0] for call in calls(tmp_path)] == ["/agent", "/another"]


def test_closed_transport_logs_in_no_more(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    """Whoever was about to use it, in another thread, would leave an ssh behind that nobody ends."""
    one = link(f"echo $$ >{tmp_path}/pid\n{READY}")
    path = Path(one.sdk_url().removeprefix("unix://"))
    path.touch()
    one.close()
    one.close()
    with pytest.raises(EngineUnreachableError):
        one.sdk_url()
    assert not path.exists()
    assert len(calls(tmp_path)) == 1
    eventually(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())), timeout_s=TIMEOUT_S)


def test_sockets_of_processes_that_are_gone_are_removed(link: Callable[..., SshTransport], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    left, ours = tmp_path / "home/s99999999-1.sock", tmp_path / f"home/s{os.getpid()}-99.sock"
    for path in (left, ours):
        path.touch()
    link(READY).sdk_url()
    assert not left.exists()
    assert ours.exists()


def test_a_process_carries_a_connection_and_each_end_of_it(program: Callable[[str], str]) -> None:
    sock = ChildSocket.start([program("read line; echo got $line; cat")], os.environ)
    sock.sendall(b"hello\nrest")
    sock.shutdown(socket.SHUT_WR)
    received = b""
    while piece := sock.recv(4096):
        received += piece
    assert received == b"got hello\nrest"
    sock.close()
    sock.close()


def test_stderr_of_a_process_is_the_reason_of_its_end(program: Callable[[str], str]) -> None:
    sock = ChildSocket.start([program("echo 'tls: bad certificate' >&2; exit 1")], os.environ)
    assert sock.recv(10) == b""
    assert sock.error_text() == "tls: bad certificate"
    sock.close()


def test_a_process_that_does_not_end_with_its_connection_is_ended(
    program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GRACE_S", "KILL_AFTER_S"):
        monkeypatch.setattr(f"autoforward.net.child_socket.{name}", 0.1)
    stubborn = f"trap '' TERM; echo $$ >{tmp_path}/pid; echo up; while :; do sleep 0.1; done"
    sock = ChildSocket.start([program(stubborn)], os.environ)
    assert sock.recv(10) == b"up\n"
    pid = int((tmp_path / "pid").read_text())
    sock.close()
    eventually(lambda: not psutil.pid_exists(pid), timeout_s=TIMEOUT_S)


def test_a_stream_over_tls_names_its_files_and_takes_no_others(
    program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(program('echo "$DOCKER_CONTEXT,$DOCKER_CERT_PATH"')).rename(tmp_path / "docker")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_CONTEXT", "another")
    tls = TlsFiles("/ca", "/cert", "/key")
    sock = TlsTransport(EngineEndpoint("tcp://there:2376", "a test", tls), tls).connect()
    assert sock.recv(100) == b",/dev/null\n"
    sock.close()
    [call] = calls(tmp_path)
    assert call.endswith(
        "--host tcp://there:2376 --tlsverify --tlscacert /ca --tlscert /cert --tlskey /key system dial-stdio"
    )


def test_tls_without_the_docker_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tls = TlsFiles(None, None, None, verify=False)
    with pytest.raises(EngineUnreachableError, match="`docker` command"):
        TlsTransport(EngineEndpoint("tcp://there:2376", "a test", tls), tls).connect()


def test_tcp_is_kept_alive() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as sock,
    ):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_socket_that_is_not_this_users_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the SDK wraps it; anything else is an engine that does not answer."""
    path = tmp_path / "docker.sock"
    path.touch()
    engine = Engine(EngineEndpoint(f"unix://{path}", "a test"))
    for cause, said in ((PermissionError(13, "Permission denied"), True), (ConnectionRefusedError(), False)):

        def fail(*_args: object, cause: OSError = cause, **_how: object) -> None:
            try:
                raise requests.ConnectionError("Connection aborted.") from cause
            except requests.ConnectionError as error:
                raise DockerException("Error while fetching server API version") from error

        monkeypatch.setattr("autoforward.engine.client._Client", fail)
        with pytest.raises(EngineUnreachableError) as caught:
            engine.version()
        assert ("you may not use the engine's socket" in str(caught.value), str(path) in str(caught.value)) == (
            said,
            True,
        )
        assert ("usermod -aG" in (caught.value.hint or "")) == said
        assert caught.value.exit_code == 3
    group = grp.getgrgid(path.stat().st_gid).gr_name
    assert f"-aG {'docker' if group == 'root' else group} " in way_to_socket(str(path))
    assert "-aG docker " in way_to_socket("/nonexistent")

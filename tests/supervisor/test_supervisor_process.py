"""The supervisor as a process: started once, ready before the command goes on, private, and gone when nobody needs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from autoforward.cli.commands.restart import restart_supervisor
from autoforward.cli.console import supervisor_client
from autoforward.config.session_record import SessionRecord
from autoforward.control.start import connect_to_supervisor, ensure_supervisor
from autoforward.core.errors import AutoforwardError
from autoforward.core.model import EngineEndpoint, Identity
from autoforward.state.folder import StateFolderError, StatePaths
from autoforward.state.registry import Registry
from tests.conftest import Runner, command_env, supervisor_of
from tests.support.containers import eventually

pytestmark = pytest.mark.local

PING = "from autoforward.cli.console import supervisor_client; print(supervisor_client.ask({'op': 'ping'}, start=True)['pid'])"
TIMEOUT_S = 60.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")


@pytest.fixture
def paths(home: Path) -> StatePaths:
    return StatePaths(home)


@contextmanager
def connected(paths: StatePaths) -> Iterator[socket.socket]:
    sock = connect_to_supervisor(paths)
    assert sock is not None
    sock.settimeout(TIMEOUT_S)
    with sock:
        yield sock


def start(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch | None = None, *, idle_exit_s: float = 600
) -> psutil.Process:
    """A supervisor that stays without a session; the test's home ends it."""
    before = os.environ.get("AUTOFORWARD_IDLE_EXIT_S")
    os.environ["AUTOFORWARD_IDLE_EXIT_S"] = str(idle_exit_s)
    try:
        ensure_supervisor(paths).close()
    finally:
        if before is None:
            del os.environ["AUTOFORWARD_IDLE_EXIT_S"]
        else:
            os.environ["AUTOFORWARD_IDLE_EXIT_S"] = before
    process = supervisor_of(paths.home)
    assert process is not None
    return process


def answers_of(sock: socket.socket) -> list[dict[str, Any]]:
    """All that the supervisor says until it hangs up."""
    answers = []
    with sock.makefile("rb") as file:
        try:
            for line in file:
                answers.append(json.loads(line))
        except ConnectionResetError:  # it hung up on what it had not read
            pass
    return answers


def ask(paths: StatePaths, request: bytes) -> list[dict[str, Any]]:
    with connected(paths) as sock:
        try:
            sock.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it did not read to the end
        return answers_of(sock)


def is_gone(process: psutil.Process) -> bool:
    # A zombie may still have threads that hold its sockets open, so those are waited for too.
    if process.is_running() and process.status() == psutil.STATUS_ZOMBIE:
        return len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 1
    return not process.is_running()


# -- starting ------------------------------------------------------------------------------------


def test_commands_that_start_a_supervisor_at_once_get_the_same(home: Path) -> None:
    env = command_env(home, {"AUTOFORWARD_IDLE_EXIT_S": "600"})
    commands = [
        subprocess.Popen([sys.executable, "-c", PING], env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [command.communicate(timeout=TIMEOUT_S)[0] for command in commands]
    assert [command.returncode for command in commands] == [0] * 4
    supervisor = supervisor_of(home)
    assert supervisor is not None
    assert said == [f"{supervisor.pid}\n"] * 4
    assert (home / "supervisor.log").read_text().count(" started, pid ") == 1


def test_supervisor_is_ready_when_its_command_goes_on(paths: StatePaths) -> None:
    process = start(paths)
    assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]
    info = json.loads(paths.supervisor_info.read_text())
    assert info["pid"] == process.pid
    assert abs(info["pid_started"] - process.create_time()) < 1
    assert info["version"]


def test_supervisor_json_is_replaced_as_a_whole(paths: StatePaths) -> None:
    """A reader found an empty file while the next supervisor wrote it, after a kill -9 for good."""
    process = start(paths)
    before = paths.supervisor_info.read_text()
    (paths.home / "kept").hardlink_to(paths.supervisor_info)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(TIMEOUT_S)
    start(paths)
    assert (paths.home / "kept").read_text() == before
    assert paths.supervisor_info.read_text() != before


def test_supervisor_starts_without_its_supervisor_json(paths: StatePaths) -> None:
    """No room for it on a full disk, say: the supervisor starts, and warns."""
    paths.ensure()
    (paths.home / "supervisor.json.tmp").mkdir()
    ensure_supervisor(paths).close()
    assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]
    eventually(lambda: "cannot write" in paths.supervisor_log.read_text())


def test_supervisor_is_detached_from_its_first_caller(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hunter2")
    process = start(paths)
    assert process.ppid() != os.getpid()
    assert os.getsid(process.pid) != os.getsid(0)
    assert process.cwd() == "/"
    assert "SOME_SECRET" not in process.environ()
    assert all(Path(f"/proc/{process.pid}/fd/{fd}").readlink() == Path("/dev/null") for fd in (0, 1, 2))
    assert process.rlimit(psutil.RLIMIT_NOFILE)[0] >= min(65_536, process.rlimit(psutil.RLIMIT_NOFILE)[1])


def test_failure_to_start_is_said(paths: StatePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOFORWARD_IDLE_EXIT_S", "soon")
    with pytest.raises(AutoforwardError, match=r"could not start.*soon") as caught:
        ensure_supervisor(paths)
    assert str(paths.supervisor_log) in (caught.value.hint or "")
    assert supervisor_of(paths.home) is None


def test_stale_socket_file_is_replaced(paths: StatePaths) -> None:
    paths.ensure()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(paths.supervisor_socket))
    assert connect_to_supervisor(paths) is None
    process = start(paths)
    assert process.is_running()


@pytest.mark.parametrize("how", ["removed", "moved away"])
def test_supervisor_whose_folder_is_gone_ends_and_leaves_the_next_alone(
    paths: StatePaths, tmp_path: Path, how: str
) -> None:
    """Nobody would find it: not to list what it forwards, nor to end it."""
    first = start(paths)
    if how == "removed":
        shutil.rmtree(paths.home)
    else:
        paths.home.rename(tmp_path / "elsewhere")
    second = start(paths)
    said = paths.supervisor_info.read_text()
    assert second.pid != first.pid
    eventually(lambda: is_gone(first), timeout_s=TIMEOUT_S)
    assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]
    assert paths.supervisor_info.read_text() == said


def test_removed_socket_is_made_again(paths: StatePaths) -> None:
    """Those who clean /tmp do: the next command would wait for a supervisor that it cannot reach."""
    process = start(paths)
    with connected(paths) as follower:
        follower.sendall(b'{"op":"events"}\n')
        paths.supervisor_socket.unlink()
        eventually(paths.supervisor_socket.exists, timeout_s=TIMEOUT_S)
        eventually(lambda: ask(paths, b'{"op":"ping"}\n')[0]["pid"] == process.pid, timeout_s=TIMEOUT_S)
        assert stat.S_IMODE(paths.supervisor_socket.stat().st_mode) == 0o600
        process.terminate()
        assert [answer["type"] for answer in answers_of(follower)] == ["result"], "what ran before goes on"


def test_next_command_after_kill_9_starts_another_supervisor(paths: StatePaths) -> None:
    first = start(paths)
    first.kill()
    eventually(lambda: is_gone(first))
    assert paths.supervisor_socket.exists()
    assert start(paths).pid != first.pid


# -- ending --------------------------------------------------------------------------------------


def test_supervisor_exits_without_sessions(paths: StatePaths) -> None:
    process = start(paths, idle_exit_s=0.2)
    eventually(lambda: is_gone(process), timeout_s=TIMEOUT_S)
    assert not paths.supervisor_socket.exists()
    assert not paths.supervisor_info.exists()
    assert "nothing to do" in paths.supervisor_log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_supervisor_and_leaves_no_socket(paths: StatePaths, number: int) -> None:
    process = start(paths)
    with connected(paths) as follower:
        follower.sendall(b'{"op":"events"}\n')
        ask(paths, b'{"op":"ping"}\n')  # whose answer tells that the follower, who came first, has been heard
        process.send_signal(number)
        assert [answer["type"] for answer in answers_of(follower)] == ["result"], "a follower is told the end"
    eventually(lambda: is_gone(process), timeout_s=TIMEOUT_S)
    assert not paths.supervisor_socket.exists()
    assert not paths.supervisor_info.exists()
    assert supervisor_client.call({"op": "ping"}, paths, start=False) is None


def test_sessions_are_taken_up_by_the_next_one(paths: StatePaths, run: Runner) -> None:
    """A stored session of an engine that does not answer: it keeps trying, says so, and can be detached."""
    paths.ensure()
    endpoint = EngineEndpoint("unix:///nonexistent/engine.sock", "a test")
    record = SessionRecord("ses-0badcafe", Identity(endpoint.host, "name:web"), endpoint, "c0ffee", "web", "web")
    with Registry(paths, print).transaction() as document:
        document.upsert_session(record.to_json())
    shown = json.loads(run("autoforward", "status", "--json", check=0).stdout)
    assert shown["running"]
    [session] = shown["sessions"]
    assert (session["id"], session["container_name"]) == ("ses-0badcafe", "web")
    assert session["state"] in ("starting", "reconnecting")
    eventually(
        lambda: "unix:///nonexistent/engine.sock" in run("autoforward", "status", check=0).stdout.split("\nweb: ")[1],
        timeout_s=TIMEOUT_S,
    )
    run("autoforward", "detach", "web", check=0)
    assert json.loads(run("autoforward", "status", "--json", check=0).stdout)["sessions"] == []
    assert Registry(paths, print).read().sessions == []


# -- who may speak to it, and how ----------------------------------------------------------------


def test_folder_and_files_are_private(paths: StatePaths) -> None:
    start(paths)
    assert stat.S_IMODE(paths.home.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths.home.iterdir()}
    assert {"supervisor.sock", "supervisor.json", "supervisor.log", "supervisor.lock", "registry.lock"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o600} == {}


@pytest.mark.parametrize("trap", ["group-writable", "symlink", "file"])
def test_folder_that_others_could_have_prepared_is_refused(tmp_path: Path, trap: str) -> None:
    """Also one in which a supervisor seems to listen: it may be anybody's."""
    folder = tmp_path / "state"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.setblocking(False)
        if trap == "file":
            folder.write_text("")
        else:
            folder.mkdir(mode=0o700)
            theirs.bind(str(folder / "supervisor.sock"))
            theirs.listen()
        if trap == "group-writable":
            folder.chmod(0o770)
        if trap == "symlink":
            folder = folder.rename(tmp_path / "real")
            (tmp_path / "state").symlink_to(folder)
        paths = StatePaths(tmp_path / "state")
        for connect in (ensure_supervisor, connect_to_supervisor):
            with pytest.raises(StateFolderError, match=str(paths.home)):
                connect(paths)
        if trap != "file":
            with pytest.raises(BlockingIOError):
                theirs.accept()
            assert not (folder / "supervisor.json").exists(), "nothing was started"


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def as_nobody(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as uid 65534, without a package that it could not read."""
    return subprocess.run(
        ["/usr/bin/env", "python3", "-I", "-c", code, *arguments],
        preexec_fn=become_nobody,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd="/",
        env={"PATH": "/usr/bin:/bin:/usr/local/bin"},
        check=False,
    )


CONNECT = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(30)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    sys.exit("no way in")
try:
    sock.sendall(b'{"op":"ping"}\\n')
    print(repr(sock.recv(1000)))
except (BrokenPipeError, ConnectionResetError):
    print(repr(b""))
"""


@as_root
def test_another_user_has_no_way_in(paths: StatePaths) -> None:
    start(paths)
    done = as_nobody(CONNECT, str(paths.supervisor_socket))
    assert (done.returncode, done.stderr.strip()) == (1, "no way in")


@as_root
def test_another_user_is_refused_even_where_the_files_let_him_in(paths: StatePaths) -> None:
    """The kernel is asked who is there: modes can be changed by hand, and some systems ignore those of sockets."""
    start(paths)
    paths.home.chmod(0o711)
    paths.supervisor_socket.chmod(0o666)
    done = as_nobody(CONNECT, str(paths.supervisor_socket))
    assert (done.returncode, done.stdout) == (0, "b''\n"), done.stderr
    paths.home.chmod(0o700)
    assert "user 65534" in paths.supervisor_log.read_text()
    assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]


BAD_REQUESTS = [
    (b"hello\n", "not JSON"),
    (b"\xff\xfe\n", "not JSON"),
    (b"[" * 100_000 + b"\n", "not JSON"),
    (b"[1]\n", "not an object"),
    (b'{"op":"dance"}\n', "'dance'"),
    (b'{"op":"' + b"x" * 1000 + b'"}\n', "xxx"),
    (b"{}\n", "'None'"),
    (b'{"op":"attach"}\n', "malformed"),
    (b'{"op":"attach","record":{"id":1}}\n', "malformed"),
    (b'{"op":"attach","record":[]}\n', "malformed"),
    (b'{"op":"forward","record":null}\n', "malformed"),
    (b'{"op":"events","since":"x"}\n', "malformed"),
    (b'{"op":"' + b"x" * 2_000_000 + b'"}\n', "too long"),
]


def test_a_bad_request_is_an_error_for_that_command_only(paths: StatePaths) -> None:
    process = start(paths)
    for request, words in BAD_REQUESTS:
        [answer] = ask(paths, request)
        assert answer["type"] == "error", request[:80]
        assert words in answer["message"], request[:80]
        assert answer["exit_code"] in (1, 2)
        assert len(answer["message"]) < 300
        assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]
    assert process.is_running()


def test_client_that_hangs_up_in_mid_request_harms_no_other(paths: StatePaths) -> None:
    start(paths)
    for part in (b"", b'{"op":"pi'):
        with connected(paths) as sock:
            sock.sendall(part)
    assert [answer["type"] for answer in ask(paths, b'{"op":"ping"}\n')] == ["result"]


def test_python_that_does_not_find_the_program_by_itself(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is there through PYTHONPATH only, say: no log is named that is not there."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'autoforward'\" >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AutoforwardError) as caught:
        ensure_supervisor(paths)
    assert str(caught.value) == "the supervisor could not start: ModuleNotFoundError: No module named 'autoforward'"
    assert "PYTHONPATH" in (caught.value.hint or "")
    assert str(paths.supervisor_log) not in (caught.value.hint or "")


def test_restart_does_not_advise_to_restart(
    paths: StatePaths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start(paths)
    info = json.loads(paths.supervisor_info.read_text())
    paths.supervisor_info.write_text(json.dumps({**info, "version": "0.0.1"}))
    monkeypatch.setenv("AUTOFORWARD_HOME", str(paths.home))
    supervisor_client.list_rows()
    assert "`autoforward restart`" in capfd.readouterr().err
    assert restart_supervisor() == 0
    assert "`autoforward restart`" not in capfd.readouterr().err

"""Other users of this machine: they read nothing, command nothing, and cannot get a command of ours to believe what is theirs.

(The control socket itself: test_supervisor_process.py.)
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoforward.control.start import connect_to_supervisor
from autoforward.net.peercred import peer_of
from autoforward.state.document import current_process
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StateFolderError, StatePaths
from autoforward.state.registry import Registry
from tests.conftest import Runner, supervisor_of
from tests.state.test_registry import LEASE
from tests.supervisor.test_supervisor_process import as_nobody, as_root, become_nobody, start

pytestmark = pytest.mark.local

NOBODY = 65534

TRY_ALL = """
import os, sys
home, pid = sys.argv[1], int(sys.argv[2])
tries = {
    "list": lambda: os.listdir(home),
    "create": lambda: open(f"{home}/registry.json.tmp", "w"),
    "signal": lambda: os.kill(pid, 15),
    "environment": lambda: open(f"/proc/{pid}/environ", "rb").read(),
    "descriptors": lambda: os.listdir(f"/proc/{pid}/fd"),
    "memory": lambda: open(f"/proc/{pid}/mem", "rb"),
}
for name in sys.argv[3:]:
    tries["read " + name] = lambda name=name: open(f"{home}/{name}", "rb")
    tries["remove " + name] = lambda name=name: os.unlink(f"{home}/{name}")
for name, attempt in tries.items():
    try:
        attempt()
    except PermissionError:
        continue
    print("could", name)
"""

SERVE = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
client, _ = sock.accept()
print(repr(client.recv(1000)), flush=True)
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Path]:
    """A folder of another user, as private as ours has to be, in a place that all can reach."""
    folder = Path("/tmp") / f"af-theirs-{os.getpid()}-{tmp_path.name[-8:]}"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def served_by_nobody(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of another user that listens there, and says what it was sent."""
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-I", "-c", SERVE, str(path)],
        preexec_fn=become_nobody,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin:/usr/local/bin"},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@as_root
def test_another_user_can_read_change_and_signal_nothing(home: Path) -> None:
    paths = StatePaths(home)
    EventLog(paths, print).append(PortEvent(event="waiting", container_port=3000, status="waiting"))
    with Registry(paths, print).transaction() as document:
        document.upsert(LEASE)
    process = start(paths)
    names = [path.name for path in home.iterdir()]
    assert {"registry.json", "events.jsonl", "supervisor.log", "supervisor.json", "supervisor.sock"} <= set(names)
    done = as_nobody(TRY_ALL, str(home), str(process.pid), *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert process.is_running()


COMMANDS = [
    ("list",),
    ("status",),
    ("detach", "--all"),
    ("stop", "--all"),
    ("open", "3000"),
    ("events",),
    ("events", "--follow"),
    ("logs",),
    ("logs", "--follow"),
    ("restart",),
]


@as_root
def test_no_command_believes_a_folder_of_somebody_else(theirs: Path, run: Runner) -> None:
    (theirs / "registry.json").write_text('{"version":1,"entries":[],"sessions":[{"id":"ses-1"}]}')
    (theirs / "supervisor.log").write_text("\x1b[2Jtheirs\n")
    (theirs / "events.jsonl").write_text('{"port":1,"seq":1,"event":"theirs"}\n')
    with served_by_nobody(theirs / "supervisor.sock") as server:
        for argv in COMMANDS:
            done = run("autoforward", *argv, env={"AUTOFORWARD_HOME": str(theirs)}, check=1)
            assert f"the state folder {theirs} belongs to user id {NOBODY}" in done.stderr, argv
            assert (done.stdout, "theirs\n" in done.stderr) == ("", False), argv
        server.kill()
        assert server.stdout is not None
        assert server.stdout.read() == "", "nobody has connected"
    assert supervisor_of(theirs) is None


SWAP = """
import os, sys
home = sys.argv[1]
os.rename(home, home + ".away")
os.mkdir(home, 0o700)
"""


@as_root
@pytest.mark.parametrize("owner", [NOBODY, 0], ids=["his own", "open to all"])
def test_a_private_folder_that_another_user_can_exchange_is_refused(theirs: Path, run: Runner, owner: int) -> None:
    """It was believed: it is 0700 and ours, until he puts his own in its place."""
    os.chown(theirs, owner, owner)
    theirs.chmod(0o777)
    home = theirs / "state"
    home.mkdir(mode=0o700)
    words = f"{theirs} belongs to user id {NOBODY}" if owner else f"{theirs} can be written by others (mode 0777)"
    for argv in COMMANDS:
        done = run("autoforward", *argv, env={"AUTOFORWARD_HOME": str(home)}, check=1)
        assert f"the state folder {home} could be replaced by other users: {words}" in done.stderr, argv
        assert "hint: " in done.stderr
    assert list(home.iterdir()) == []
    done = as_nobody(SWAP, str(home))
    assert (done.returncode, done.stderr) == (0, ""), "he can"


@as_root
def test_with_the_sticky_bit_another_user_cannot(theirs: Path, run: Runner) -> None:
    os.chown(theirs, 0, 0)
    theirs.chmod(0o1777)
    home = theirs / "state"
    home.mkdir(mode=0o700)
    assert run("autoforward", "list", "--json", env={"AUTOFORWARD_HOME": str(home)}, check=0).stdout == "[]\n"
    done = as_nobody(SWAP, str(home))
    assert "PermissionError" in done.stderr


@as_root
def test_a_server_of_somebody_else_is_told_nothing(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was exchanged after it was looked at: the kernel is asked who answers."""
    monkeypatch.setattr(StatePaths, "ensure", lambda _self: None)
    paths = StatePaths(theirs)
    with served_by_nobody(paths.supervisor_socket) as server:
        with pytest.raises(StateFolderError, match=f"is served by user id {NOBODY}, not by 0"):
            connect_to_supervisor(paths)
        assert server.stdout is not None
        assert server.stdout.readline() == "b''\n"


@as_root
def test_a_short_socket_folder_that_was_made_before_is_refused(run: Runner, tmp_path: Path) -> None:
    """Its name can be guessed, and /tmp is everybody's."""
    paths = StatePaths(tmp_path / ("long" * 25))
    paths.home.mkdir(mode=0o700)
    folder = paths.supervisor_socket.parent
    assert folder.parent == Path("/tmp")
    done = as_nobody("import os, sys; os.mkdir(sys.argv[1], 0o700)", str(folder))
    assert done.returncode == 0, done.stderr
    try:
        for argv in (("events", "--follow"), ("restart",)):
            done = run("autoforward", *argv, env={"AUTOFORWARD_HOME": str(paths.home)}, check=1)
            assert f"{folder} belongs to user id {NOBODY}" in done.stderr
    finally:
        folder.rmdir()


NAMES = [path.name for path in StatePaths(Path("/"))._files()]


@pytest.mark.parametrize("name", NAMES)
def test_a_link_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    """Also one that leads nowhere yet: what is written there would be written elsewhere."""
    paths = StatePaths(tmp_path / "state")
    paths.ensure()
    (paths.home / name).symlink_to(tmp_path / "elsewhere")
    for check in (paths.ensure, paths.check):
        with pytest.raises(StateFolderError, match=f"{name} is a symbolic link"):
            check()
    assert not (tmp_path / "elsewhere").exists()


@as_root
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_somebody_else_is_refused(name: str, tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "state")
    paths.ensure()
    (paths.home / name).write_text("")
    os.chown(paths.home / name, NOBODY, NOBODY)
    with pytest.raises(StateFolderError, match=f"{name} belongs to user id {NOBODY}"):
        paths.ensure()


def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    paths = StatePaths(tmp_path / "state")
    paths.ensure()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (paths.home / "registry.json.tmp").symlink_to(elsewhere)
    registry = Registry(paths, print)
    with pytest.raises(Exception, match="cannot write the registry"), registry.transaction() as document:
        document.upsert(LEASE)
    with registry.transaction() as document:
        document.upsert(LEASE)
    assert elsewhere.read_text() == "mine"
    assert registry.read().entries == [LEASE]


def test_the_kernel_says_who_is_at_the_other_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
        accepted, _ = server.accept()
        with accepted:
            for peer in (peer_of(client), peer_of(accepted)):
                assert peer.pid == current_process().pid
                assert peer.uid in (os.geteuid(), None)
                assert peer.is_trusted

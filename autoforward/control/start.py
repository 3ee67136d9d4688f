"""Start the supervisor if it is not running, and wait until it is ready: a handshake over a pipe, never a sleep.

A lock (`starting.lock`) serializes commands that start it at once; the second finds it running. The new process keeps
only `KEPT_ENVIRONMENT` of the caller's environment.
"""

from __future__ import annotations

import os
import socket
import sys

from autoforward.core.errors import AutoforwardError
from autoforward.core.text import printable
from autoforward.net.peercred import peer_of
from autoforward.net.poller import wait_readable
from autoforward.state.folder import HOME_VARIABLE, StateFolderError, StatePaths
from autoforward.state.locks import acquire, lock_file

READY_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 5.0
LOG_END_BYTES = 4096

KEPT_ENVIRONMENT = (
    "AUTOFORWARD_HOME",
    "AUTOFORWARD_IDLE_EXIT_S",
    "AUTOFORWARD_LOG_LEVEL",
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "TMPDIR",
    "USER",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
)


def connect_to_supervisor(paths: StatePaths) -> socket.socket | None:
    """A connection to the running supervisor; None if there is none. Raises StateFolderError, AutoforwardError."""
    paths.check()  # in a folder that others can write to, another user may listen
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        sock.connect(str(paths.supervisor_socket))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as error:
        sock.close()
        raise AutoforwardError(f"the supervisor does not answer: {error}") from error
    sock.settimeout(None)
    # The folder was checked before; the kernel now names the peer.
    peer = peer_of(sock)
    if not peer.is_trusted:
        sock.close()
        raise StateFolderError(
            f"the control socket {paths.supervisor_socket} is served by user id {peer.uid}, not by {os.geteuid()}",
            hint=f"see who can write to {paths.home.parent}, or set {HOME_VARIABLE} to another folder",
        )
    return sock


def ensure_supervisor(paths: StatePaths) -> socket.socket:
    """A connection to the supervisor, started if necessary. Raises AutoforwardError with the end of its log."""
    sock = connect_to_supervisor(paths)
    if sock is not None:
        return sock
    paths.ensure()
    try:
        lock = lock_file(paths.starting_lock)
        if not acquire(lock, READY_TIMEOUT_S):
            raise AutoforwardError("another command has been starting the supervisor for too long")
    except OSError as error:
        raise StateFolderError(
            f"the state folder {paths.home} cannot be written: {error.strerror}",
            hint=f"make it writable, or set {HOME_VARIABLE} to another folder",
        ) from error
    try:
        sock = connect_to_supervisor(paths)
        if sock is None:
            _start(paths)
            sock = connect_to_supervisor(paths)
        if sock is None:
            raise AutoforwardError(
                f"the supervisor ended as soon as it had started{log_end(paths)}", hint=way_out(paths)
            )
        return sock
    finally:
        lock.release()


def _start(paths: StatePaths) -> None:
    import subprocess  # not for a command that finds the supervisor running

    ready_read, ready_write = os.pipe()
    try:
        with (
            open(ready_read, "rb", buffering=0) as ready,  # noqa: PTH123  # a descriptor, not a path
            subprocess.Popen(
                [sys.executable, "-P", "-m", "autoforward.supervisor", "--ready-fd", str(ready_write)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment_for(paths),
                pass_fds=[ready_write],
                start_new_session=True,
            ) as process,
        ):
            os.close(ready_write)
            ready_write = -1
            # The first process forks and exits at once; wait for the daemon's message or its exit.
            words = _read_until_end(ready.fileno())
            process.wait()
    finally:
        if ready_write >= 0:
            os.close(ready_write)
    if not words and (problem := _import_problem(paths)):
        raise AutoforwardError(
            f"the supervisor could not start: {problem}",
            hint=f"install autoforward where {sys.executable} finds it by itself: the supervisor does not use PYTHONPATH",
        )
    if words != "ready":
        words, _, hint = words.partition("\n")
        raise AutoforwardError(
            f"the supervisor could not start: {words or f'it ended without a message{log_end(paths)}'}",
            hint=hint or way_out(paths),
        )


def _import_problem(paths: StatePaths) -> str | None:
    """Why the package is not importable where the supervisor starts; None if it is."""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-P", "-c", "import autoforward.supervisor.__main__"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd="/",
        env=_environment_for(paths),
        timeout=READY_TIMEOUT_S,
    )
    lines = done.stderr.strip().splitlines()
    return printable(lines[-1], " ")[:300] if done.returncode and lines else None


def _environment_for(paths: StatePaths) -> dict[str, str]:
    # Last: the caller's home may differ from the environment's.
    return {
        **{key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ},
        "AUTOFORWARD_HOME": str(paths.home),
    }


def _read_until_end(fileno: int) -> str:
    received = b""
    while wait_readable(fileno, timeout_s=READY_TIMEOUT_S):
        data = os.read(fileno, 4096)
        if not data:
            break
        received += data
    return received.decode("utf-8", "replace").strip()


def log_end(paths: StatePaths) -> str:
    """`; its log ends: …` with the last line of a supervisor that has ended; empty without one."""
    try:
        with paths.supervisor_log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_END_BYTES))
            lines = file.read(LOG_END_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its log ends: {printable(last, ' ')[:300]}" if last else ""


def way_out(paths: StatePaths) -> str:
    """The hint when every new supervisor ends: stored sessions are the first thing that each restores."""
    log = f"see {paths.supervisor_log}; " if paths.supervisor_log.exists() else ""
    return f"{log}`autoforward detach --all` forgets the sessions that it begins with"

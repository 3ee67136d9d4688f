"""An engine behind ssh: one login carries everything, by forwarding the engine's socket to a local one.

`ssh -L LOCAL:REMOTE HOST` opens a channel per connection, with half-close both ways; there is no process per
connection on either side, and no session limit (sshd's MaxSessions, 10, counts sessions only). The remote command
prints where the engine's socket is, as the docker command there sees it, and then reads stdin: when the local process
is killed, the login ends.

The user's ssh configuration applies, ssh asks nothing (BatchMode), and its stderr is the reason of a failure.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from autoforward.core.errors import AutoforwardError, EngineUnreachableError
from autoforward.core.model import EngineEndpoint
from autoforward.net.poller import wait_readable
from autoforward.state.folder import StatePaths

log = logging.getLogger(__name__)

LOGIN_TIMEOUT_S = 25.0
"""From the start of ssh to the remote command's output; ssh gives up connecting after CONNECT_TIMEOUT_S."""

CONNECT_TIMEOUT_S = 10
ALIVE_INTERVAL_S = 5
ALIVE_COUNT = 3
"""A link that is silent for this many intervals is down, and ssh exits."""

END_TIMEOUT_S = 3.0
CHANNEL_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 64 * 1024
MAX_STDERR_LINES = 5
STDERR_TIMEOUT_S = 2.0

DEFAULT_SOCKET = "/var/run/docker.sock"

_TOLD = "autoforward-engine "
_READY = "autoforward-ready"
_REFUSED = "open failed: "
"""In ssh's message about a channel: `channel 2: open failed: connect failed: open failed`."""

# For any login shell: print the engine's socket, if docker is there; then wait for EOF.
_ASK = f"docker context inspect --format '{_TOLD}{{{{.Endpoints.docker.Host}}}}'; echo {_READY}; exec cat"
_KNOWN = f"echo {_READY}; exec cat"

OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    f"ServerAliveInterval={ALIVE_INTERVAL_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
    "StreamLocalBindUnlink=yes",
    "StreamLocalBindMask=0177",
    # The user's own forward for that host may be active in another login.
    "ExitOnForwardFailure=no",
    # An existing master is used; this one, which ends with the session, becomes none.
    "ControlMaster=no",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "RemoteCommand=none",
    "RequestTTY=no",
    "LogLevel=INFO",
)

_numbers = itertools.count(1)


class SshTransport:
    """Implements `EngineTransport`. Logs in when needed, and again after the login ended."""

    def __init__(self, endpoint: EngineEndpoint, on_up: Callable[[], None], program: str = "ssh") -> None:
        self.endpoint = endpoint
        self._on_up = on_up
        self._program = program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr_lines: deque[str] = deque(maxlen=MAX_STDERR_LINES)
        self._has_stderr = threading.Event()
        self._failed_s = float("-inf")
        self._failure = ""
        self._is_closed = False
        self._their_socket: str | None = unquote(urlsplit(endpoint.host).path) or None
        self._our_socket: Path | None = None

    def __repr__(self) -> str:
        return f"<SshTransport {self.endpoint.host}>"

    def sdk_url(self) -> str:
        return f"unix://{self._open()}"

    def connect(self) -> socket.socket:
        path = self._open()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CHANNEL_TIMEOUT_S)
            sock.connect(path)
        except OSError as error:
            sock.close()
            raise self._unreachable(f"ssh does not take connections: {error}") from error
        return sock

    def error_text(self) -> str:
        """ssh's stderr since the last call, such as why it could not open a channel."""
        self._has_stderr.wait(STDERR_TIMEOUT_S)  # stderr precedes the failure, but on another pipe
        self._has_stderr.clear()
        lines = []
        with contextlib.suppress(IndexError):  # its last line may belong to another connection
            while True:
                lines.append(self._stderr_lines.popleft())
        if any(_REFUSED in line for line in lines):  # sshd gives no other reason
            return (
                f"the remote machine does not open {self._their_socket}: no engine is there, or you may not "
                "use it, or its sshd does not forward sockets"
            )
        return "; ".join(lines)

    def check(self, timeout_s: float) -> None:
        """End a login over which the engine does not answer in time: ssh itself may take longer to notice."""
        with self._lock:
            if self._process is None or self._our_socket is None:
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout_s)
                try:
                    sock.connect(str(self._our_socket))
                    sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
                    sock.recv(1)  # EOF is an answer too: then the engine is away
                except OSError as error:
                    log.info("%s: the login is given up: %s", self.endpoint.host, error)
                    self._end()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._end()
            if self._our_socket is not None:
                self._our_socket.unlink(missing_ok=True)

    def _open(self) -> str:
        """The path of the local socket, logged in. Threads that wait for the same login share its outcome."""
        came_s = time.monotonic()
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                return str(self._our_socket)
            if self._is_closed:
                raise self._unreachable("it is not needed any more")
            if self._failed_s >= came_s:
                raise self._unreachable(self._failure)
            try:
                path = self._log_in()
            except EngineUnreachableError as error:
                self._failed_s, self._failure = time.monotonic(), str(error.__cause__ or error)
                raise
        self._on_up()
        return path

    def _log_in(self) -> str:
        if self._our_socket is None:
            self._our_socket = _place_for_socket()
        theirs = self._their_socket or DEFAULT_SOCKET
        told = self._start(theirs)
        self._their_socket = told or theirs
        if self._their_socket != theirs:
            log.info("%s: the engine is at %s there", self.endpoint.host, told)
            self._start(self._their_socket)
        return str(self._our_socket)

    def _start(self, their_socket: str) -> str | None:
        """Log in; returns the engine's socket there, if it was asked for and reported."""
        self._end()
        self._stderr_lines.clear()
        self._has_stderr.clear()
        parts = urlsplit(self.endpoint.host)
        argv = [self._program, "-T"]
        for option in OPTIONS:
            argv += ["-o", option]
        try:
            argv += ["-p", str(parts.port)] if parts.port else []
        except ValueError as error:
            raise self._unreachable(str(error)) from error
        argv += ["-l", unquote(parts.username)] if parts.username else []
        argv += ["-L", f"{self._our_socket}:{their_socket}", "--", parts.hostname or ""]
        environ = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        if self.endpoint.ssh_auth_sock is not None:
            environ["SSH_AUTH_SOCK"] = self.endpoint.ssh_auth_sock
        try:
            process = subprocess.Popen(
                [*argv, _ASK if self._their_socket is None else _KNOWN],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environ,
                start_new_session=True,
            )
        except OSError as error:
            raise self._unreachable(f"cannot run ssh: {error}") from error
        self._process = process
        heard = threading.Thread(
            target=self._read_stderr, args=(process,), name=f"ssh {self.endpoint.host}", daemon=True
        )
        heard.start()
        try:
            return self._wait_until_ready(process)
        except AutoforwardError as error:
            self._end()
            heard.join(END_TIMEOUT_S)
            reason = self.error_text() or str(error)
            raise self._unreachable(reason) from AutoforwardError(reason)

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> str | None:
        assert process.stdout is not None
        fd, received, told = process.stdout.fileno(), b"", None
        deadline_s = time.monotonic() + LOGIN_TIMEOUT_S
        while (left_s := deadline_s - time.monotonic()) > 0 and wait_readable(fd, timeout_s=left_s):
            data = os.read(fd, 4096)
            received += data
            *lines, received = received.split(b"\n")
            for line in (raw.decode("utf-8", "replace").strip() for raw in lines):
                if line == _READY:
                    return told
                if line.startswith(_TOLD):
                    told = self._socket_in(line.removeprefix(_TOLD))
            if not data:
                raise AutoforwardError("ssh ended before it had logged in")
            if len(received) > MAX_LINE_BYTES:
                raise AutoforwardError("what answers there is no shell")
        raise AutoforwardError(f"no shell answered within {LOGIN_TIMEOUT_S:.0f} s")

    def _socket_in(self, url: str) -> str:
        """The socket path that the docker command there uses."""
        scheme, _, path = url.partition("://")
        if scheme != "unix" or not path.startswith("/"):
            raise AutoforwardError(f"the engine of that machine is at {url}, which is not a socket there")
        return path

    def _read_stderr(self, process: subprocess.Popen[bytes]) -> None:
        """Collect ssh's stderr until it exits; then reap it."""
        assert process.stderr is not None
        assert process.stdout is not None
        with process.stderr as stderr:
            for raw in stderr:
                if line := " ".join(raw.decode("utf-8", "replace").split())[:500]:
                    self._stderr_lines.append(line)
                    self._has_stderr.set()
                    log.info("%s: ssh: %s", self.endpoint.host, line)
        process.wait()

    def _end(self) -> None:
        """TERM, which ssh obeys at once, then KILL."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _unreachable(self, reason: str) -> EngineUnreachableError:
        host = self.endpoint.host
        return EngineUnreachableError(
            f"the engine at {host} (from {self.endpoint.source}) cannot be reached: {reason}",
            hint=f"`ssh -o BatchMode=yes {host.partition('://')[2].partition('/')[0]}` has to log in without asking",
        )


def _place_for_socket() -> Path:
    """A new path next to the control socket; removes those of dead processes."""
    import psutil

    paths = StatePaths.locate()
    paths.ensure()
    folder = paths.supervisor_socket.parent
    for left in folder.glob("s*-*.sock"):
        pid = left.name[1:].partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    # No longer than the control socket's path: see `folder.MAX_SOCKET_PATH_BYTES`.
    return folder / f"s{os.getpid()}-{next(_numbers)}.sock"

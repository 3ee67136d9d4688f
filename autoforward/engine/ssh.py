"""An engine behind ssh: one login carries everything, by forwarding the engine's own socket to one here.

`ssh -L OURS:THEIRS HOST` opens a channel for each connection, with half-close both ways; there is no process per
connection on either side, and no limit of sessions (sshd's MaxSessions, 10, counts sessions alone). The command
that runs there says where the engine's socket is, as the docker command of that machine sees it, and then lives on its
stdin: when the process that holds the other end is killed, the login ends.

The user's own ssh configuration is honoured, ssh asks nothing (BatchMode), and what it says is the reason when it fails.
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
"""From the start of ssh to the word of the machine there; ssh gives up connecting after CONNECT_TIMEOUT_S."""

CONNECT_TIMEOUT_S = 10
ALIVE_INTERVAL_S = 5
ALIVE_COUNT = 3
"""A link that says nothing for that many intervals is down, and ssh ends."""

END_TIMEOUT_S = 3.0
CHANNEL_TIMEOUT_S = 10.0
MAX_LINE_BYTES = 64 * 1024
MAX_WORDS = 5
WORDS_TIMEOUT_S = 2.0

DEFAULT_SOCKET = "/var/run/docker.sock"

_TOLD = "autoforward-engine "
_READY = "autoforward-ready"
_REFUSED = "open failed: "
"""In what ssh says of a channel, `channel 2: open failed: connect failed: open failed`."""

# What every shell understands, the login's may be any: where the engine is, if docker is there; then wait for our end.
_ASK = f"docker context inspect --format '{_TOLD}{{{{.Endpoints.docker.Host}}}}'; echo {_READY}; exec cat"
_KNOWN = f"echo {_READY}; exec cat"

OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_TIMEOUT_S}",
    f"ServerAliveInterval={ALIVE_INTERVAL_S}",
    f"ServerAliveCountMax={ALIVE_COUNT}",
    "StreamLocalBindUnlink=yes",
    "StreamLocalBindMask=0177",
    # A forward of the user's own for that host may have its port taken, by a login of the user's own.
    "ExitOnForwardFailure=no",
    # A master that is there is used; ours, which ends with the session, becomes none.
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
    """See `EngineTransport`. The login is made when it is needed, and made again when it has ended."""

    def __init__(self, endpoint: EngineEndpoint, on_up: Callable[[], None], program: str = "ssh") -> None:
        self.endpoint = endpoint
        self._on_up = on_up
        self._program = program
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._words: deque[str] = deque(maxlen=MAX_WORDS)
        self._has_said = threading.Event()
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

    def words(self) -> str:
        """What ssh has said since it was asked last: why it could not open a channel, say."""
        self._has_said.wait(WORDS_TIMEOUT_S)  # it says why before it acts, on another pipe
        self._has_said.clear()
        said = []
        with contextlib.suppress(IndexError):  # its last line may be another connection's by then
            while True:
                said.append(self._words.popleft())
        if any(_REFUSED in line for line in said):  # sshd tells no more, whatever the reason
            return (
                f"the remote machine does not open {self._their_socket}: no engine is there, or you may not "
                "use it, or its sshd does not forward sockets"
            )
        return "; ".join(said)

    def check(self, timeout_s: float) -> None:
        """Is the login any good? One over which the engine says nothing by then is ended: ssh itself may take a while."""
        with self._lock:
            if self._process is None or self._our_socket is None:
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(timeout_s)
                try:
                    sock.connect(str(self._our_socket))
                    sock.sendall(b"GET /_ping HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n\r\n")
                    sock.recv(1)  # an end is an answer too: it is the engine that is away then
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
        """The path of our socket, logged in. Those who come while a login is tried share what comes of it."""
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
        """Log in; where the engine is there, if that was asked and told."""
        self._end()
        self._words.clear()
        self._has_said.clear()
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
        heard = threading.Thread(target=self._hear, args=(process,), name=f"ssh {self.endpoint.host}", daemon=True)
        heard.start()
        try:
            return self._wait_until_ready(process)
        except AutoforwardError as error:
            self._end()
            heard.join(END_TIMEOUT_S)
            reason = self.words() or str(error)
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
        """The path that the docker command there uses."""
        scheme, _, path = url.partition("://")
        if scheme != "unix" or not path.startswith("/"):
            raise AutoforwardError(f"the engine of that machine is at {url}, which is not a socket there")
        return path

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        """What ssh says, until it ends; then it is reaped."""
        assert process.stderr is not None
        assert process.stdout is not None
        with process.stderr as stderr:
            for raw in stderr:
                if line := " ".join(raw.decode("utf-8", "replace").split())[:500]:
                    self._words.append(line)
                    self._has_said.set()
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
    """A new path beside the control socket; those of processes that are gone are removed."""
    import psutil

    paths = StatePaths.locate()
    paths.ensure()
    folder = paths.supervisor_socket.parent
    for left in folder.glob("s*-*.sock"):
        pid = left.name[1:].partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    # No longer than the control socket's: see `paths.MAX_SOCKET_PATH_BYTES`.
    return folder / f"s{os.getpid()}-{next(_numbers)}.sock"

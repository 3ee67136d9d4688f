"""Runs the product's commands without starting Python for each: one process has imported them, and forks.

A forked command is what its console script is after the imports: its own process with the caller's arguments, environment,
folder and three descriptors. What differs: no controlling terminal, and /proc/PID/exe aside, another start. Tests that are about
that use the script (`real=True`), and test_fixtures.py holds that both give the same.

A supervisor that such a command starts is forked by the server too, likewise with what the command gives it.

`python -m tests.support.fork_server FD` serves on a socket that keeps messages apart. A message is JSON `{argv, env, cwd, forks}`
with descriptors: where the answer goes, stdin, stdout, stderr and, for a supervisor, the one on which it says that it is ready.
`forks`: whether the command's supervisor is forked too. The answer is `PID\n`, and at its end `STATUS\n`, as waitpid has it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import pkgutil
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY_DIR = Path(__file__).resolve().parents[2]
COMMANDS = {
    "autoforward": "autoforward.cli.main",
    "devup": "autoforward.cli.devup",
    "devdown": "autoforward.cli.devdown",
}
READ_AT_START = re.compile(r"PYTHON\w*|LANG|LC_\w+|TZ|LD_\w+|MALLOC_\w*")
"""Variables that an interpreter reads when it starts."""

ENVIRON = dict(os.environ)
"""Before any test has changed it."""

ROOM = "x" * 16_384
"""In the server's arguments and environment, for those of its children."""

MAX_MESSAGE_BYTES = 1 << 20


# -- the tests' side ---------------------------------------------------------------------------------


class Forked:
    """A command that runs."""

    def __init__(self, answers: socket.socket) -> None:
        self._answers = answers
        self.pid = int(self._line())

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            piece = self._answers.recv(1)
            assert piece, "the fork server has ended"
            line += piece
        return line.decode()

    def wait(self, timeout_s: float) -> int:
        """Exit status, of a signal its negative number. Raises TimeoutError."""
        self._answers.settimeout(max(0.001, timeout_s))
        status = os.waitstatus_to_exitcode(int(self._line()))
        self._answers.close()
        return status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait(20)


class ForkServer:
    """Started with the first command; ends with this process."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno()), ROOM],
                pass_fds=[theirs.fileno()],
                cwd=REPOSITORY_DIR,
                env={**ENVIRON, "ROOM": ROOM},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        self._requests.close()
        self._process.wait(20)

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | None,
        streams: Sequence[int],
        *,
        forks: bool = True,
    ) -> Forked:
        mine, theirs = socket.socketpair()
        with theirs:
            message = {"argv": list(argv), "env": dict(env), "cwd": str(cwd or Path.cwd()), "forks": forks}
            socket.send_fds(self._requests, [json.dumps(message).encode()], [theirs.fileno(), *streams])
        return Forked(mine)

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None,
        timeout_s: float,
        input: str | None = None,
        forks: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """As subprocess.run does, also in that it waits until the last that has its stdout has closed it."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.ExitStack() as stack:
            (out, out_write), (err, err_write) = os.pipe(), os.pipe()
            theirs = [_source(input), out_write, err_write]
            for fd in (out, err):
                stack.callback(os.close, fd)
            try:
                command = self.start(argv, env, cwd, theirs, forks=forks)
            finally:
                for fd in theirs:
                    os.close(fd)
            try:
                stdout, stderr = _read_all((out, err), deadline_s)
                status = command.wait(deadline_s - time.monotonic())
            except TimeoutError:
                command.kill()
                raise subprocess.TimeoutExpired(list(argv), timeout_s) from None
        return subprocess.CompletedProcess(list(argv), status, stdout, stderr)


def _source(text: str | None) -> int:
    if text is None:
        return os.open(os.devnull, os.O_RDONLY)
    data = text.encode()
    assert len(data) < 65_536, "more than a pipe takes at once"
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def _read_all(streams: Sequence[int], deadline_s: float) -> list[bytes]:
    got = {fd: bytearray() for fd in streams}
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                piece = os.read(key.fd, 65_536)
                got[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
    return [bytes(got[fd]) for fd in streams]


def as_text(done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[str]:
    """As subprocess.run has it with `text=True`."""
    stdout, stderr = (re.sub("\r\n?", "\n", data.decode()) for data in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


@functools.cache
def fork_server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.close)
    return server


def can_fork(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether it is one of the commands, and an interpreter would start as the server's has."""
    return (
        sys.platform == "linux"
        and argv[0] in COMMANDS
        and all(env.get(name) == ENVIRON.get(name) for name in {*env, *ENVIRON} if READ_AT_START.fullmatch(name))
    )


# -- the server's side -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a child is to become. `supervisors`: where a command asks for a supervisor; None for a supervisor itself."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    forks: bool
    descriptors: Sequence[int]
    supervisors: socket.socket | None


def serve(control: socket.socket) -> Request | None:
    """Fork for each message until no test is left (None); in a child it returns what that is to become."""
    inner, supervisors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    running: dict[int, tuple[int, socket.socket]] = {}
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for sock in (control, inner):
            stack.enter_context(sock)
            selector.register(sock, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    pid, answers = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    with answers, contextlib.suppress(OSError):
                        answers.sendall(b"%d\n" % os.waitpid(pid, 0)[1])
                    continue
                assert isinstance(key.fileobj, socket.socket)
                data, fds, _, _ = socket.recv_fds(key.fileobj, MAX_MESSAGE_BYTES, 8)
                if not data:
                    return None
                answers = socket.socket(fileno=fds[0])
                assert threading.active_count() == 1, threading.enumerate()
                pid = os.fork()
                if not pid:
                    answers.close()
                    for pidfd, (_, other) in running.items():
                        os.close(pidfd)
                        other.close()
                    if key.fileobj is inner:
                        supervisors.close()
                    asks = supervisors if key.fileobj is control else None
                    return Request(**json.loads(data), descriptors=fds[1:], supervisors=asks)
                for fd in fds[1:]:
                    os.close(fd)
                with contextlib.suppress(OSError):
                    answers.sendall(b"%d\n" % pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, answers
                selector.register(pidfd, selectors.EVENT_READ)


def become(request: Request) -> Callable[[], Any]:
    """Take over arguments, environment, folder and descriptors; gives what is to be called."""
    for number, fd in enumerate(request.descriptors[:3]):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        like = getattr(sys, name)
        fresh = open(  # noqa: SIM115  # stays open to the end
            like.fileno(), mode, encoding=like.encoding, errors=like.errors, closefd=False
        )
        setattr(sys, name, fresh)
        setattr(sys, f"__{name}__", fresh)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if request.supervisors is None:
        os.setsid()
        [ready] = request.descriptors[3:]
        sys.argv = ["autoforward.supervisor", "--ready-fd", str(ready)]
        _show(request.argv, request.env, "python")
        return _function("autoforward.supervisor.__main__")
    program = Path(sys.executable).with_name(request.argv[0])
    sys.argv = [str(program), *request.argv[1:]]
    # click takes the program's name from these.
    sys.modules["__main__"].__package__ = sys.modules["__main__"].__spec__ = None
    _show([sys.executable, *sys.argv], request.env, program.name)
    if request.forks:
        start = importlib.import_module("autoforward.control.start")
        start.subprocess = SimpleNamespace(  # type: ignore[attr-defined]
            Popen=functools.partial(_ForkedSupervisor, request.supervisors),
            DEVNULL=subprocess.DEVNULL,
            run=subprocess.run,
        )
    return _function(COMMANDS[request.argv[0]])


def _function(module: str) -> Callable[[], Any]:
    return importlib.import_module(module).main  # type: ignore[no-any-return]


class _ForkedSupervisor:
    """In place of the Popen of `python -P -m autoforward.supervisor --ready-fd FD`."""

    def __init__(
        self,
        supervisors: socket.socket,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        cwd: str,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert (stdin, stdout, stderr, start_new_session) == (*[subprocess.DEVNULL] * 3, True)
        mine, theirs = socket.socketpair()
        with theirs, open(os.devnull, "r+b", buffering=0) as null:  # noqa: PTH123
            message = json.dumps({"argv": argv, "env": env, "cwd": cwd, "forks": False}).encode()
            socket.send_fds(supervisors, [message], [theirs.fileno(), *[null.fileno()] * 3, *pass_fds])
        self._first = Forked(mine)

    def __enter__(self) -> _ForkedSupervisor:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.wait()

    @functools.cache  # noqa: B019  # one an object, which lives as long
    def wait(self) -> int:
        return self._first.wait(60)


def _show(argv: Sequence[str], env: Mapping[str, str], name: str) -> None:
    """For those who look into /proc: the arguments and the environment are where the kernel put the server's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, fields[45:49])
    # A last byte that is no NUL: the kernel takes the arguments for a title, which ends at its first NUL.
    title = b" ".join(map(os.fsencode, argv))[: arg_end - arg_start - 2]
    variables = b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in sorted(env.items()))
    ctypes.memmove(arg_start, title.ljust(arg_end - arg_start - 1, b"\0") + b"!", arg_end - arg_start)
    ctypes.memmove(
        env_start, variables[: env_end - env_start - 1].ljust(env_end - env_start, b"\0"), env_end - env_start
    )


def finish(function: Callable[[], Any]) -> int:
    """Call it and end as the interpreter does: the status of SystemExit, or a traceback."""
    try:
        status = function()
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing does
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 120
    return int(status or 0)


def _import_everything() -> None:
    package = importlib.import_module("autoforward")
    for module in pkgutil.walk_packages(package.__path__, "autoforward."):
        importlib.import_module(module.name)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    sys.path[0] = str(Path(sys.executable).parent)
    _import_everything()
    # Most of what is loaded stays shared with the children.
    gc.collect()
    gc.freeze()
    request = serve(control)
    if request is None:
        return
    status = finish(become(request))
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()

"""Containers of the tests, and what tests do with them: run a command, start a server, read the process table.

Everything that a run creates carries the label `autoforward.test=<run id>`; `sweep` removes it by that label, also
after a failed test. A run id names the pytest process, so that the next run removes what a killed one left.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import docker
import psutil
from docker.errors import APIError, NotFound

from tests.images.recipes import HELPER_DIR

LABEL = "autoforward.test"
Behaviour = Literal["http", "echo", "late-answer", "closes-first", "ignores-eof", "sha"]
T = TypeVar("T")

# Prints "@PID", the stat line, then the arguments each followed by a newline, of every process but this shell.
# What the shell complains of a process that has just ended comes anywhere among it: Podman mixes the two streams otherwise.
_PROCESSES = """
exec 2>/dev/null
for d in /proc/[0-9]*; do
  p=${d#/proc/}
  [ "$p" = "$$" ] && continue
  s=$(cat "$d/stat" 2>/dev/null) || continue
  echo "@$p"; echo "$s"
  tr '\\0' '\\n' <"$d/cmdline" 2>/dev/null
done
echo "self $$"
"""


_numbers = itertools.count(random.SystemRandom().randrange(10_000))
"""Ports of servers that ask for none."""


def run_id() -> str:
    """This pytest process: pid and start time, so that a reused pid is not taken for it."""
    return f"{os.getpid()}-{int(psutil.Process().create_time())}"


def is_alive(owner: str) -> bool:
    """Whether the pytest process of a run id is still there; what is not a run id is nobody's business here."""
    pid, _, started = owner.partition("-")
    if not (pid.isdecimal() and started.isdecimal()):
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - int(started)) < 2
    except psutil.NoSuchProcess:
        return False


def sweep(client: docker.DockerClient, owner: str) -> None:
    """Remove every container, network and volume of that run."""
    filters = {"label": f"{LABEL}={owner}"}
    for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
        with contextlib.suppress(NotFound, APIError):
            container.remove(force=True, v=True)
    for network in client.networks.list(filters=filters):
        with contextlib.suppress(NotFound):
            network.remove()
    for volume in client.volumes.list(filters=filters):
        with contextlib.suppress(NotFound):
            volume.remove(force=True)


def sweep_dead_runs(client: docker.DockerClient) -> None:
    """Remove what runs left whose process is gone."""
    owners = {
        container.labels[LABEL]
        for container in client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
    } | {network.attrs["Labels"][LABEL] for network in client.networks.list(filters={"label": LABEL})}
    for owner in owners:
        if not is_alive(owner):
            sweep(client, owner)


PTRACE: dict[str, list[str]] = {"cap_add": ["SYS_PTRACE"]}
"""For a container in which root looks into the agent's descriptors, or speaks in its place: the agent is not dumpable."""


def eventually(check: Callable[[], T], *, timeout_s: float = 10.0, what: str = "") -> T:
    """Call `check` until it gives something true, and return that. For things that no event announces.

    An AssertionError inside `check` counts as "not yet", and is what is raised when the time is up.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            result = check()
            if result:
                return result
            problem: AssertionError = AssertionError(f"not within {timeout_s} s: {what or check} (last: {result!r})")
        except AssertionError as error:
            problem = error
        if time.monotonic() > deadline:
            raise problem
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """One row of the container's process table; `state` is the kernel's letter (`Z` is a zombie)."""

    pid: int
    ppid: int
    state: str
    command: tuple[str, ...]
    name: str


@dataclass
class Server:
    """A server in a container. It listens when you get it."""

    container: Container
    behaviour: str
    bind: str
    port: int
    pid: int

    def stop(self, signal: int = 15, *, timeout_s: float = 10.0) -> None:
        """End it and wait until it is gone; fine when it is gone already."""
        tries = int(timeout_s / 0.02)
        script = f"kill -{signal} {self.pid} 2>/dev/null; i=0; while kill -0 {self.pid} 2>/dev/null; do"
        script += f" i=$((i+1)); [ $i -gt {tries} ] && exit 1; sleep 0.02; done"
        code, output = self.container.exec(["sh", "-c", script], user="root")
        assert code == 0, f"{self} did not end: {output}"


@dataclass
class Container:
    """A container of one test."""

    client: docker.DockerClient
    raw: Any
    image: str
    servers: list[Server] = field(default_factory=list)
    host: str | None = None
    """For the docker command, where the environment names another engine."""

    @property
    def id(self) -> str:
        """All 64 digits."""
        return str(self.raw.id)

    @property
    def name(self) -> str:
        return str(self.raw.name)

    def address(self, network: str | None = None) -> str:
        """Its IPv4 address on that network, or on the first one."""
        self.raw.reload()
        networks = self.raw.attrs["NetworkSettings"]["Networks"]
        return str((networks[network] if network else next(iter(networks.values())))["IPAddress"])

    def exec(self, argv: list[str], *, user: str = "") -> tuple[int, str]:
        """Run to the end; exit status and stdout with stderr."""
        code, output = self.raw.exec_run(argv, user=user)
        return int(code), output.decode(errors="replace")

    def shell(self, script: str) -> str:
        """Run with `sh -c`, which must succeed; its output."""
        code, output = self.exec(["sh", "-c", script])
        assert code == 0, f"{script!r} in {self.name}: exit {code}: {output}"
        return output

    def stop(self, timeout_s: int = 0) -> None:
        self.raw.stop(timeout=timeout_s)

    def start(self) -> None:
        self.raw.start()

    def restart(self, timeout_s: int = 0) -> None:
        self.raw.restart(timeout=timeout_s)

    def kill(self) -> None:
        self.raw.kill()

    def remove(self) -> None:
        """Fine when it is gone already."""
        with contextlib.suppress(NotFound):
            self.raw.remove(force=True, v=True)

    def start_server(
        self,
        behaviour: Behaviour = "http",
        *,
        bind: str = "127.0.0.1",
        port: int = 0,
        text: str = "hello",
        delay_s: float = 2.0,
        user: str = "",
    ) -> Server:
        """Start a server and return when it listens. Port 0 takes one from 10000 to 19999 (see `.port`): on a random number of
        the kernel a Python server may be a debugger's, which is not forwarded at once.

        Images without python3 (busybox, nolane) have `http` only, with a fixed page and a port that must be given.
        """
        if self.image in ("busybox", "nolane"):
            server = self._start_httpd(behaviour, bind, port, user)
        else:
            port = port or 10_000 + next(_numbers) % 10_000
            argv = ["python3", f"{HELPER_DIR}/server.py", behaviour, "--bind", bind, "--port", str(port)]
            argv += ["--text", text, "--delay", str(delay_s)]
            words = self._first_line(argv, user).split()
            server = Server(self, behaviour, bind, int(words[2]), int(words[3]))
        self.servers.append(server)
        return server

    def _first_line(self, argv: list[str], user: str) -> str:
        # Through the command: leaving docker-py's hijacked stream early leaves its socket to the garbage collector.
        # Ending the command does not end the server (one of the traps that the product has to deal with).
        command = [
            "docker",
            *(["--host", self.host] if self.host else []),
            "exec",
            *(["-u", user] if user else []),
            self.id,
            *argv,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as client:
            assert client.stdout is not None
            lines = []
            for line in client.stdout:
                lines.append(line)
                if line.startswith("ready "):
                    client.kill()
                    return line
        raise AssertionError(f"{shlex.join(argv)} in {self.name} did not start: {''.join(lines)}")

    def _start_httpd(self, behaviour: str, bind: str, port: int, user: str) -> Server:
        assert behaviour == "http", f"{self.image} has no python3: only http, not {behaviour}"
        assert port, f"{self.image} has no python3: name the port"
        where = f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}"
        argv = [f"{HELPER_DIR}/httpd", "-f", "-p", where, "-h", f"{HELPER_DIR}/www"]
        subprocess.run(["docker", "exec", "-d", *(["-u", user] if user else []), self.id, *argv], check=True)
        row = f":{port:04X} .*:0000 0A "
        wait = "do i=$((i+1)); [ $i -gt 500 ] && exit 1; sleep 0.02; done"
        self.shell(f"i=0; while ! cat /proc/net/tcp* | grep -q '{row}'; {wait}")
        [pid] = [process.pid for process in self.processes() if where in process.command]
        return Server(self, behaviour, bind, port, pid)

    def processes(self, *, of_tests: bool = True) -> list[Process]:
        """Every process in the container, zombies too, without the reader itself.

        With `of_tests=False` also without PID 1 (and docker-init's child) and the servers that `start_server` started:
        what is left is the product's.
        """
        for _ in range(5):
            code, output = self.exec(["sh", "-c", _PROCESSES], user="root")
            assert code == 0, output
            body, whole, own = output.rpartition("self ")
            # On a busy machine the engine now and then ends a stream before the last of what was said.
            if whole:
                break
        else:
            raise AssertionError(f"the process table of {self.name} is cut off: {output!r}")
        # A process that ends while it is looked at leaves the shell's complaint in place of its lines.
        blocks = (block.lstrip("@") for block in ("\n" + body).split("\n@"))
        rows = [_parse_process(block) for block in blocks if block.partition("\n")[0].isdigit() and ")" in block]
        found = [row for row in rows if row.ppid != int(own)]
        if of_tests:
            return found
        ours = {1} | {server.pid for server in self.servers}
        with_init = any(row.pid == 1 and "docker-init" in row.name for row in found)
        return [row for row in found if row.pid not in ours and not (with_init and row.ppid == 1 and row.pid < 10)]


def _parse_process(block: str) -> Process:
    pid, stat, *arguments = block.lstrip("@").split("\n")
    # The name in parentheses may hold anything, so read from its last one on.
    head, _, tail = stat.rpartition(")")
    state, ppid = tail.split()[:2]
    return Process(int(pid), int(ppid), state, tuple(arg for arg in arguments if arg), head.partition("(")[2])


@dataclass
class ComposeProject:
    """A compose project that is up: services `app` (a loopback server on 3000) and `db` (one line on 5432)."""

    client: docker.DockerClient
    name: str

    def container(self, service: str) -> Container:
        filters = {"label": [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]}
        [raw] = self.client.containers.list(filters=filters)
        return Container(self.client, raw, "full")


def fetch(url: str, *, timeout_s: float = 10.0) -> str:
    """The body of a page, fetched on a fresh connection, past any proxy of the environment."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_s) as answer:
        return str(answer.read().decode())


def assert_page(url: str, page: str, *, timeout_s: float = 10.0) -> None:
    """The page is there in time: a refusal or a reset means that the server has not been seen yet."""

    def is_there() -> bool:
        try:
            return fetch(url) == page
        except OSError:
            return False

    eventually(is_there, timeout_s=timeout_s, what=f"{page!r} at {url}")


def is_refused(host: str, port: int) -> bool:
    """Whether a connection to it is refused (ECONNREFUSED, nothing else)."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # taken, and reset before we looked: somebody does listen
        pass
    return False


def event_lines(text: str) -> Iterator[dict[str, Any]]:
    """The objects of an events.jsonl, or of `PORT_EVENT: ` lines among others."""
    for line in text.splitlines():
        payload = line.removeprefix("PORT_EVENT: ")
        if payload.startswith("{"):
            yield json.loads(payload)

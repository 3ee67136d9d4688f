"""The ways into a container that are compared: the others' mechanisms and our lanes, set up once, measured in rounds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psutil

from bench.programs import SERVER, SSHD, Load
from scripts.end_supervisor import end_supervisor
from tests.support.containers import LABEL, is_alive, run_id

PORT = 7000
RUN_LABEL = "autoforward.bench"
LANES = ("agent", "agent-mux", "socat", "nc", "devtcp")
NO_DIRECT = "--no-direct"


class SkippedError(Exception):
    """This way cannot be measured here; the text says why."""


@dataclass
class Way:
    """One row. `slow` ways start a process per connection: they get fewer at once. `new_exec`: a bare exec stream."""

    name: str
    title: str
    host: str = "127.0.0.1"
    port: object = PORT
    slow: bool = False
    container: Any = None
    skipped: str | None = None
    new_exec: Callable[[], str] | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    note: str | None = None

    def add(self, column: str, number: float) -> None:
        self.samples.setdefault(column, []).append(number)


def free_port() -> int:
    """A port below the ephemeral ones that nobody has on 127.0.0.1 and ::1."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        if port in _given:
            continue
        with contextlib.ExitStack() as stack:
            try:
                for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                    stack.enter_context(socket.socket(family)).bind((address, port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise RuntimeError("no free port")


_given: set[int] = set()


class Bench:
    """Containers, a home for the product and helper processes; `close` takes all of it away."""

    def __init__(self, client: docker.DockerClient, image: str, load: Load) -> None:
        self.client = client
        self.image = image
        self.load = load
        self.scratch = Path(tempfile.mkdtemp(prefix="af-b", dir="/tmp"))
        self.home = self.scratch / "home"
        self._containers: list[Any] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        sweep_dead(client)

    def close(self) -> None:
        for process in self._processes:
            end_group(process)
        end_supervisor(self.home)
        for container in self._containers:
            remove(container)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def container(self, *, port: int = PORT, count: int = 1, **options: Any) -> Any:
        labels = {LABEL: "bench", RUN_LABEL: run_id()}
        made = self.client.containers.create(self.image, [SERVER, str(port), str(count)], labels=labels, **options)
        self._containers.append(made)
        made.start()
        made.reload()
        return made

    def remove(self, containers: list[Any]) -> None:
        for container in containers:
            remove(container)
            self._containers.remove(container)

    def spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A helper that runs until `close`, in a process group of its own."""
        log = (self.scratch / "helpers.log").open("ab")
        with log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        return process

    def autoforward(self, *arguments: str) -> str:
        """Run the product's command; its stdout. RuntimeError with its words when it fails."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"autoforward {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("autoforward")), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        # All ways are on one bridge, each foreign to the others.
        return os.environ | {"AUTOFORWARD_HOME": str(self.home), "AUTOFORWARD_DIRECT": "true"}

    def forward_of(self, container: Any, port: int = PORT) -> dict[str, Any]:
        rows = json.loads(self.autoforward("list", "--json"))
        for row in rows:
            if row["containerId"] == container.id and row["port"] == port and row["status"] == "active":
                return dict(row)
        raise RuntimeError(f"no forward of port {port} of {container.name}: {rows}")

    def supervisor(self) -> psutil.Process:
        return psutil.Process(int(json.loads((self.home / "supervisor.json").read_text())["pid"]))

    def await_accepting(self, port: int, timeout_s: float = 30) -> dict[str, Any]:
        return self.load("accepting", "127.0.0.1", port, timeout_s)


def address_of(container: Any) -> str:
    """Its address on the default network."""
    return str(next(iter(container.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"])


def remove(container: Any) -> None:
    with contextlib.suppress(docker.errors.NotFound, docker.errors.APIError):
        container.remove(force=True, v=True)


def sweep_dead(client: docker.DockerClient) -> None:
    """Remove what a killed run left."""
    for container in client.containers.list(all=True, filters={"label": RUN_LABEL}, ignore_removed=True):
        if not is_alive(container.labels[RUN_LABEL]):
            remove(container)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a helper and its children: TERM, then KILL. `start_new_session` made its pid the group's."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
            return


def ssh_command(bench: Bench, container: Any, local_port: int, remote_port: int = PORT) -> list[str]:
    """`ssh -L` with an exec of sshd as its ProxyCommand. Raises SkippedError."""
    for tool in ("ssh", "ssh-keygen"):
        if shutil.which(tool) is None:
            raise SkippedError(f"no {tool} on this machine")
    key = bench.scratch / "key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    public = key.with_suffix(".pub").read_text().strip()
    config = "UsePAM no\\nStrictModes no\\nHostKey /bench-key\\nAuthorizedKeysFile /bench-keys\\nPermitRootLogin yes\\n"
    script = (
        f"umask 077; printf '{config}' > /bench-sshd; echo '{public}' > /bench-keys; mkdir -p /run/sshd;"
        f" cat > /bench-key <<'END'\n{key.read_text()}END\n{SSHD} -t -f /bench-sshd"
    )
    code, output = container.exec_run(["sh", "-c", script], user="root")
    if code:
        raise SkippedError(f"sshd does not run in the container: {output.decode(errors='replace').strip()[-200:]}")
    options = {
        "ProxyCommand": f"docker exec -i {container.id} {SSHD} -i -f /bench-sshd",
        "IdentityFile": str(key),
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "ExitOnForwardFailure": "yes",
        "LogLevel": "ERROR",
    }
    flags = [word for name, text in options.items() for word in ("-o", f"{name}={text}")]
    forward = f"127.0.0.1:{local_port}:127.0.0.1:{remote_port}"
    return ["ssh", "-F", "/dev/null", "-N", *flags, "-L", forward, "root@container"]


def set_up(bench: Bench, names: list[str] | None, no_sshd: str | None) -> Iterator[Way]:
    """The ways, ready one after the other; those that cannot be had have `skipped`."""
    peer = bench.container(ports={f"{PORT}/tcp": ("127.0.0.1", None)})
    makers: list[tuple[Way, Callable[[Way], None]]] = [
        (Way("direct", "container address directly"), lambda way: setattr(way, "host", address_of(peer))),
        (Way("published", "`docker run -p` (docker-proxy)"), lambda way: _published(way, peer)),
        (Way("ssh", "`ssh -L` over `docker exec -i … sshd -i`"), lambda way: _ssh(bench, way, peer, no_sshd)),
        (
            Way("exec-cli", "one `docker exec -i … socat` per connection", slow=True),
            lambda way: _exec_cli(bench, way, peer),
        ),
        (Way("bare-exec", "bare exec stream (API)"), lambda way: _bare(bench, way, peer)),
    ]
    titles = {
        "agent": "**our lane `agent`**",
        "agent-mux": "our lane `agent`, no direct path",
        "socat": "our lane `socat` (one exec per connection, API)",
        "nc": "our lane `nc`",
        "devtcp": "our lane `devtcp`",
    }
    has_direct = NO_DIRECT in bench.autoforward("attach", "--help")
    for lane in LANES:
        if lane != "agent-mux" or has_direct:
            way = Way(lane, titles[lane], slow=not lane.startswith("agent"))
            makers.append((way, lambda way: _lane(bench, way)))
    for way, make in makers:
        if names and way.name not in names:
            continue
        way.container = peer
        try:
            make(way)
        except (SkippedError, RuntimeError) as error:
            way.skipped = str(error)
        yield way


def _published(way: Way, peer: Any) -> None:
    way.port = int(peer.attrs["NetworkSettings"]["Ports"][f"{PORT}/tcp"][0]["HostPort"])


def _ssh(bench: Bench, way: Way, peer: Any, no_sshd: str | None) -> None:
    if no_sshd is not None:
        raise SkippedError(no_sshd)
    way.port = free_port()
    bench.spawn(ssh_command(bench, peer, way.port))
    bench.await_accepting(way.port)


def _exec_cli(bench: Bench, way: Way, peer: Any) -> None:
    if shutil.which("socat") is None:
        raise SkippedError("no socat on this machine to listen with")
    way.port = free_port()
    command = f"docker exec -i {peer.id} socat - TCP\\:127.0.0.1\\:{PORT}"
    bench.spawn(["socat", f"TCP-LISTEN:{way.port},bind=127.0.0.1,fork,reuseaddr,backlog=1024", f"EXEC:{command}"])
    bench.await_accepting(way.port)


def _bare(bench: Bench, way: Way, peer: Any) -> None:
    address = bench.client.api.base_url
    endpoint = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not endpoint.startswith("unix://"):
        raise SkippedError(f"the engine at {address} is not on a local socket")
    way.host = f"exec:{endpoint.removeprefix('unix://')}"
    way.new_exec = lambda: str(bench.client.api.exec_create(peer.id, [SERVER, "-"], stdin=True)["Id"])


def _lane(bench: Bench, way: Way) -> None:
    way.container = bench.container()
    lane = way.name.partition("-")[0]
    extra = [NO_DIRECT] if way.name == "agent-mux" else []
    bench.autoforward("attach", way.container.name, "--lane", lane, *extra)
    row = bench.forward_of(way.container)
    if row["lane"] != lane:
        raise SkippedError(f"the lane is {row['lane']}, not {lane}")
    way.port = row["localPort"]


def process_count(way: Way) -> int:
    """How many processes the container has, as the engine counts them."""
    return len(way.container.top()["Processes"])


def settle(way: Way, count: int, timeout_s: float = 8.0) -> None:
    """Wait until the processes of ended connections are gone: they would count against who is measured next."""
    deadline = time.monotonic() + timeout_s
    while way.slow and process_count(way) > count and time.monotonic() < deadline:
        time.sleep(0.1)

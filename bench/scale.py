"""One supervisor with very many containers: how long until all are watched, and what it costs then.

    python -m bench.scale [COUNT...] [--engines N] [--delay-ms MS]       default: 10 100 1000 containers on one engine
    python -m bench.scale --real 60                                      busybox containers on the engine that answers

The engines are fakes (`bench.fake_engine`) but for `--real`; each container has one server. Prints a Markdown table,
docs/scale.md says what the rows mean.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psutil

from autoforward.cli.console.supervisor_client import call
from autoforward.config.session_record import SessionRecord
from autoforward.core.model import EngineEndpoint, Identity
from autoforward.state.folder import StatePaths
from bench.cost import cpu_ns
from bench.fake_engine import CONTAINER_PORT, container_id
from scripts.say import say
from tests.images.build import ensure_images
from tests.images.recipes import HELPER_DIR
from tests.support.containers import LABEL, run_id, sweep

ATTACH_AT_ONCE = 16
IDLE_S = 10.0
READY_TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Place:
    """A container to attach to."""

    endpoint: EngineEndpoint
    container_id: str
    name: str

    def record(self) -> SessionRecord:
        identity = Identity(self.endpoint.host, f"name:{self.name}")
        return SessionRecord(
            f"ses-{self.container_id[-8:]}", identity, self.endpoint, self.container_id, self.name, self.name
        )


@dataclass
class Home:
    """A supervisor's home of this run's own, and what is asked of whoever serves it."""

    folder: Path
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> StatePaths:
        return StatePaths(self.folder)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        asked = call(request, self.paths, start=True)
        assert asked is not None
        with asked:
            for _ in asked:
                pass
            return dict(asked.result or {})

    def supervisor(self) -> psutil.Process:
        return psutil.Process(int(self.ask({"op": "ping"})["pid"]))

    def wait_all_watched(self, count: int) -> None:
        """Until every session is watching and has a forward."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            sessions = self.ask({"op": "status"})["sessions"]
            if sum(one["state"] == "watching" and one["forwards"] > 0 for one in sessions) == count:
                return
            assert time.monotonic() < deadline_s, f"{len(sessions)} sessions, not all of them watched"
            time.sleep(0.05)


def measure(home: Home, places: list[Place], idle_s: float = IDLE_S) -> dict[str, str]:
    """Attach to all, look at the cost, kill the supervisor, and wait until the next one has them all."""

    def attach(place: Place) -> None:
        home.ask({"op": "attach", "record": place.record().to_json()})

    home.ask({"op": "ping"})
    figures: dict[str, str] = {}
    process = home.supervisor()
    with ThreadPoolExecutor(ATTACH_AT_ONCE) as pool, _timed(figures, "attach all, s", "CPU of it, s", process):
        list(pool.map(attach, places))
    home.wait_all_watched(len(places))
    figures["memory, MB"] = f"{process.memory_info().rss / 1e6:.0f}"
    figures["threads"] = str(process.num_threads())
    figures["descriptors"] = str(process.num_fds())
    begin_s, before = time.monotonic(), cpu_ns([process.pid])
    time.sleep(idle_s)
    figures["idle, % of a core"] = f"{(cpu_ns([process.pid]) - before) / (time.monotonic() - begin_s) / 1e7:.1f}"
    figures["`list --json`, ms"] = f"{1000 * _list_s(home):.0f}"
    figures["registry, KB"] = f"{home.paths.registry.stat().st_size / 1000:.0f}"
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)
    begin_s = time.monotonic()
    home.wait_all_watched(len(places))
    figures["after kill -9, all back, s"] = f"{time.monotonic() - begin_s:.1f}"
    begin_s = time.monotonic()
    home.ask({"op": "detach", "all": True, "target": None, "container_ids": [], "timeout_s": None})
    figures["detach all, s"] = f"{time.monotonic() - begin_s:.1f}"
    return figures


@contextlib.contextmanager
def _timed(figures: dict[str, str], wall: str, cpu: str, process: psutil.Process) -> Iterator[None]:
    begin_s, before = time.monotonic(), cpu_ns([process.pid])
    yield
    figures[wall] = f"{time.monotonic() - begin_s:.1f}"
    figures[cpu] = f"{(cpu_ns([process.pid]) - before) / 1e9:.1f}"


def _list_s(home: Home) -> float:
    """The command as people have it, the best of three."""
    times = []
    for _ in range(3):
        begin_s = time.monotonic()
        command = [str(Path(sys.executable).with_name("autoforward")), "list", "--json"]
        environment = {**os.environ, "AUTOFORWARD_HOME": str(home.folder)}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.monotonic() - begin_s)
    return min(times)


@contextlib.contextmanager
def supervised() -> Iterator[Home]:
    home = Home(Path(tempfile.mkdtemp(prefix="af-scale-", dir="/tmp")))
    os.environ["AUTOFORWARD_HOME"] = str(home.folder)
    try:
        yield home
    finally:
        with contextlib.suppress(psutil.Error):
            process = home.supervisor()
            process.terminate()
            psutil.wait_procs([process], timeout=30)
        shutil.rmtree(home.folder, ignore_errors=True)


@contextlib.contextmanager
def fakes(count: int, engines: int, delay_ms: float) -> Iterator[list[Place]]:
    """So many containers, spread over so many engines, each a process of its own."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="af-fakes-", dir="/tmp")))
        hosts = []
        for number in range(engines):
            path = folder / f"{number}.sock"
            command = [sys.executable, "-m", "bench.fake_engine", str(path), str(count), str(delay_ms)]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            hosts.append(EngineEndpoint(f"unix://{path}", "the bench"))
        yield [Place(hosts[n % engines], container_id(n), f"box-{n}") for n in range(count)]


@contextlib.contextmanager
def real(count: int) -> Iterator[list[Place]]:
    """Busybox containers, each with a server that listens on its loopback."""
    client = docker.from_env(timeout=300)
    images = ensure_images(client, ["busybox"], say=say)
    try:
        places = []
        for _ in range(count):
            command = [f"{HELPER_DIR}/httpd", "-f", "-p", f"127.0.0.1:{CONTAINER_PORT}", "-h", f"{HELPER_DIR}/www"]
            made = client.containers.run(
                images["busybox"], command, detach=True, labels={LABEL: run_id()}, network_mode="none"
            )
            places.append(
                Place(EngineEndpoint("unix:///var/run/docker.sock", "the bench"), str(made.id), str(made.name))
            )
        yield places
    finally:
        sweep(client, run_id())
        client.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[10, 100, 1000])
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--real", type=int, metavar="COUNT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    makers: dict[str, Callable[[], Any]] = {}
    if options.real:
        makers[f"{options.real}, real"] = lambda: real(options.real)
    else:
        for count in options.counts:
            makers[str(count)] = lambda count=count: fakes(count, options.engines, options.delay_ms)
    columns = {}
    for name, maker in makers.items():
        with maker() as places, supervised() as home:
            columns[name] = measure(home, places)
            say(f"scale: {name}: {columns[name]}")
    lines = [f"| containers | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for row in next(iter(columns.values())):
        lines.append(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

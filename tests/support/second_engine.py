"""An engine of the tests' own, to be stopped, killed and started again: nobody else's containers are on it.

It runs inside a network namespace of its own (in the host's its clean-up would take the first engine's bridge away),
with its own folders, socket and containerd, without a bridge: its containers have no network but their loopback.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import docker
import psutil

from scripts.engine import ping
from tests.support.containers import Container

START_TIMEOUT_S = 60.0
CONTAINERD_TIMEOUT_S = 20.0


class SecondEngine:
    """`start`, `stop`, `kill`, as often as needed; `close` at the end. Needs root, dockerd, and unshare."""

    def __init__(self, *, live_restore: bool, program: str = "dockerd", bridge: bool = False) -> None:
        """`program` is which dockerd. With `bridge` its containers have addresses, on a network that is its namespace's alone."""
        # Short, as the path of a unix socket has to be.
        self.folder = Path(tempfile.mkdtemp(prefix="af-engine-", dir="/tmp"))
        self.socket = self.folder / "sock"
        self.live_restore = live_restore
        self.program = program
        self.bridge = bridge
        self.more_options: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._containerd: psutil.Process | None = None
        self._made: list[Container] = []

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why there can be none here."""
        for tool in ("dockerd", "containerd", "unshare", "ip"):
            if shutil.which(tool) is None:
                return f"a second engine needs {tool}"
        tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
        return "a second engine needs root, for a network namespace of its own" if tried.returncode else None

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> float:
        """Start it; when it answered first (seconds of the clock)."""
        options = [
            "--host",
            self.host,
            "--data-root",
            str(self.folder / "data"),
            "--exec-root",
            str(self.folder / "exec"),
        ]
        options += ["--pidfile", str(self.folder / "pid"), "--iptables=false", "--ip6tables=false"]
        options += [] if self.bridge else ["--bridge=none"]
        options += ["--live-restore"] if self.live_restore else []
        options += self.more_options
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", self.program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ping(self.socket):
            words = (self.folder / "log").read_text(errors="replace")[-500:]
            assert self._process.poll() is None, f"dockerd ended while it started: {words}"
            assert time.monotonic() < deadline_s, f"dockerd does not answer: {words}"
            time.sleep(0.01)
        answered_s = time.time()
        [self._containerd] = [
            child for child in psutil.Process(self._process.pid).children() if child.name() == "containerd"
        ]
        return answered_s

    def signal(self, number: signal.Signals) -> None:
        """STOP makes it one that takes connections and answers nobody, CONT one that does."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """Tell it to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, and wait until its containerd has ended too: the next one could not start before."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)
        self._process = None
        containerd, self._containerd = self._containerd, None
        if containerd is not None:
            _, alive = psutil.wait_procs([containerd], timeout=CONTAINERD_TIMEOUT_S)
            for process in alive:
                process.kill()
            (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def load(self, image: str) -> None:
        """Give it an image of the first engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as save:
            loaded = subprocess.run(
                ["docker", "--host", self.host, "load"], stdin=save.stdout, capture_output=True, check=False
            )
        assert (save.returncode, loaded.returncode) == (0, 0), loaded.stderr

    def run(self, image: str, command: list[str], **options: Any) -> Container:
        client = docker.DockerClient(base_url=self.host, timeout=60)
        raw = client.containers.create(image, command, network_mode="none", **options)
        made = Container(client, raw, "full")
        self._made.append(made)
        raw.start()
        return made

    def remove_containers(self) -> None:
        for made in self._made:
            made.remove()
            made.client.close()
        self._made.clear()

    def close(self) -> None:
        """End it and remove all that was its."""
        if not self.is_running:
            self.start()  # only an engine ends the containers of one that was killed
        self.remove_containers()
        self.stop()
        for mounted in sorted(_mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    rows = Path("/proc/self/mounts").read_text().splitlines()
    return [row.split()[1] for row in rows if row.split()[1].startswith(f"{folder}/")]

"""`python -m bench.screen`: the CPU that `list --watch` takes with 200 forwards, its own and what it adds to the supervisor's.

A container with 200 servers, a terminal of 140 by 50, the default pace, 20 s without traffic. The goal is 3 % of a core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import docker
import psutil

from scripts import engine
from scripts.say import say
from tests.images.build import ensure_images
from tests.support.containers import LABEL, run_id
from tests.support.terminal import Terminal

PORTS = range(21000, 21200)
SECONDS = 20.0

SERVERS = """
import select, socket
servers = [socket.create_server(("127.0.0.1", port)) for port in range(%d, %d)]
select.select([], [], [])
"""


def main() -> int:
    engine.ensure()
    client = docker.from_env()
    image = ensure_images(client, ["full"], say=say)["full"]
    code = SERVERS % (PORTS.start, PORTS.stop)
    container = client.containers.run(image, ["python3", "-c", code], detach=True, init=True, labels={LABEL: run_id()})
    try:
        with tempfile.TemporaryDirectory(prefix="af-", dir="/tmp") as folder:
            return _measure(Path(folder), str(container.name))
    finally:
        container.remove(force=True)
        client.close()


def _measure(home: Path, name: str) -> int:
    program = str(Path(sys.executable).with_name("autoforward"))
    environ = {
        **os.environ,
        "AUTOFORWARD_HOME": str(home),
        "AUTOFORWARD_MAX_PORTS": str(len(PORTS)),
        "AUTOFORWARD_NOTIFY": "false",
        "TERM": "xterm-256color",
        "LC_ALL": "C.UTF-8",
    }
    try:
        subprocess.run([program, "attach", name], env=environ, check=True, capture_output=True)
        supervisor = psutil.Process(json.loads((home / "supervisor.json").read_text())["pid"])
        [before] = _cpu_percent([supervisor])
        with Terminal([program, "list", "--watch"], environ, columns=140, lines=50) as terminal:
            terminal.wait_for(f"{len(PORTS)} ports")
            own, after = _cpu_percent([psutil.Process(terminal.process.pid), supervisor])
        added = max(0.0, after - before)
        say(f"list --watch, {len(PORTS)} forwards: {own:.2f} % of a core, and {added:.2f} % more of the supervisor's")
        return 0
    finally:
        subprocess.run([program, "detach", "--all"], env=environ, check=False, capture_output=True)
        if (home / "supervisor.json").exists():
            psutil.Process(json.loads((home / "supervisor.json").read_text())["pid"]).terminate()


def _cpu_percent(processes: Sequence[psutil.Process]) -> list[float]:
    """Of one core, over `SECONDS`."""

    def spent_s() -> list[float]:
        return [times.user + times.system for times in (process.cpu_times() for process in processes)]

    began_s, before = time.monotonic(), spent_s()
    time.sleep(SECONDS)
    passed_s = time.monotonic() - began_s
    return [100 * (now - then) / passed_s for now, then in zip(spent_s(), before, strict=True)]


if __name__ == "__main__":
    sys.exit(main())

"""What attached containers cost while nothing happens: CPU of every process that is there for them, and memory."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from bench.figures import percentile
from bench.measure import Effort
from bench.ways import Bench, Way, free_port

MEMORY_CONTAINERS = 50
MEMORY_FORWARDS = 10
SETTLE_S = 3.0
WINDOW_S = 1.0


def cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of all threads of these processes, from the scheduler's own clock (ticks of 10 ms are too coarse)."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except (OSError, IndexError):  # it ended meanwhile
                continue
    return total


def _pids(matches: Any) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if matches(process):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def _in_containers(ids: list[str]) -> list[int]:
    def inside(process: psutil.Process) -> bool:
        groups = Path(f"/proc/{process.pid}/cgroup").read_text()
        return any(one in groups for one in ids)

    return _pids(inside)


def _shims(ids: list[str]) -> list[int]:
    return _pids(lambda process: "containerd-shim" in process.name() and any(one in process.cmdline() for one in ids))


def _engine() -> list[int]:
    return _pids(lambda process: process.name() in ("dockerd", "containerd"))


def idle(bench: Bench, way: Way, effort: Effort) -> dict[str, float]:
    """% of a core per attached container, by who spends it. The engine's own share is a difference."""
    containers = [bench.container() for _ in range(effort.idle_containers)]
    ids = [container.id for container in containers]
    engine_pids = _engine()
    try:
        quiet = _rates(effort.idle_s, {"engine": engine_pids})["engine"]
        for container in containers:
            bench.autoforward("attach", container.name, "--lane", way.name)
        time.sleep(SETTLE_S)
        groups = {
            "supervisor": [bench.supervisor().pid],
            "containers": _in_containers(ids),
            "shims": _shims(ids),
            "engine": engine_pids,
        }
        rates = _rates(effort.idle_s, groups)
    finally:
        for container in containers:
            bench.autoforward("detach", container.name)
        bench.remove(containers)
    spent = {who: sum(of_window) / len(of_window) for who, of_window in rates.items()}
    # Others may be using the engine meanwhile: the quiet quarter of the windows is what it spends for us alone.
    spent["engine"] = max(0.0, percentile(rates["engine"], 0.25) - percentile(quiet, 0.25))
    shares = {who: 100 * rate / len(containers) for who, rate in spent.items()}
    way.add("idle_percent", sum(shares.values()))
    return shares


def _rates(seconds: float, groups: dict[str, list[int]]) -> dict[str, list[float]]:
    """CPU seconds per second, in windows of a second."""
    rates: dict[str, list[float]] = {who: [] for who in groups}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start, before = time.monotonic_ns(), {who: cpu_ns(pids) for who, pids in groups.items()}
        time.sleep(WINDOW_S)
        took_ns = time.monotonic_ns() - start
        for who, pids in groups.items():
            rates[who].append((cpu_ns(pids) - before[who]) / took_ns)
    return rates


def memory(bench: Bench, way: Way) -> None:
    """Resident megabytes of the supervisor with many containers and forwards."""
    containers: list[Any] = []
    try:
        for _ in range(MEMORY_CONTAINERS):
            containers.append(bench.container(port=free_port(), count=MEMORY_FORWARDS))
            bench.autoforward("attach", containers[-1].name, "--lane", way.name)
        way.add("memory_mb", bench.supervisor().memory_info().rss / 1e6)
    finally:
        for container in containers:
            bench.autoforward("detach", container.name)
        bench.remove(containers)

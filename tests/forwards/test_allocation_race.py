"""A hundred processes ask for the same host port at once: no number twice, no row lost, the file always JSON."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from autoforward.core.model import ForwardKey
from autoforward.forwards.allocator import Allocation, AllocationRequest, Allocator, LeaseRow
from autoforward.state.buffered_registry import BufferedRegistry
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry, current_process

pytestmark = pytest.mark.local

PROCESSES = 100
WANTED_PORT = 23000


def allocate_and_hold(home: Path, number: int, barrier: Any, pipe: Connection) -> None:
    """One process: meet the others, allocate, tell the number, and hold it until the other end closes."""
    warnings: list[str] = []
    registry = Registry(StatePaths(home), warnings.append, lock_timeout_s=60)
    allocator = Allocator(BufferedRegistry(registry, warnings.append), current_process())
    request = AllocationRequest(
        identity=f"engine|name:box-{number}",
        key=ForwardKey("tcp", None, WANTED_PORT),
        host_ip="127.0.0.1",
        row=LeaseRow(f"container-{number}", None, None, None, "detected"),
    )
    barrier.wait()
    [result] = allocator.allocate_many([request])
    if isinstance(result, Allocation):
        pipe.send((number, result.pair.host_port, result.lease.id, warnings))
    else:
        pipe.send((number, None, result.reason, warnings))
    pipe.poll(None)


class FileWatcher:
    """Parses each registry as fast as it can, from the first moment to the last."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry reader")
        self.row_counts: set[int] = set()
        self.bad: list[bytes] = []

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.is_set()
            for file in self._files:
                if not file.exists():
                    continue
                data = file.read_bytes()
                try:
                    self.row_counts.add(len(json.loads(data)["entries"]))
                except (ValueError, KeyError):
                    self.bad.append(data)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


@pytest.mark.parametrize("home_count", [1, 2])
def test_a_hundred_processes_never_share_a_number(tmp_path: Path, home_count: int) -> None:
    homes = [StatePaths(tmp_path / f"home-{index}") for index in range(home_count)]
    for home in homes:
        home.ensure()
    # A fork server that has the imports done already: a hundred fresh interpreters would take most of the time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier = context.Barrier(PROCESSES)
    watcher = FileWatcher([home.registry for home in homes])
    pipes: list[Connection] = []
    workers = []
    try:
        with watcher.watching():
            for number in range(PROCESSES):
                ours, theirs = context.Pipe()
                pipes.append(ours)
                worker = context.Process(
                    target=allocate_and_hold, args=(homes[number % home_count].home, number, barrier, theirs)
                )
                worker.start()
                theirs.close()
                workers.append(worker)
            answers = []
            for pipe in pipes:
                assert pipe.poll(60), "a process did not answer"
                answers.append(pipe.recv())
            documents = [Registry(home, print).read() for home in homes]
    finally:
        for pipe in pipes:
            pipe.send(None)
            pipe.close()
        for worker in workers:
            worker.join(30)

    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    assert [warnings for *_, warnings in answers if warnings] == []
    ports = {number: host_port for number, host_port, *_ in answers}
    assert None not in ports.values(), [answer for answer in answers if answer[1] is None]
    assert [port for port, count in Counter(ports.values()).items() if count > 1] == []

    rows = [lease for document in documents for lease in document.entries]
    assert {int(lease.container_id.removeprefix("container-")): lease.host_port for lease in rows} == ports
    assert len(rows) == PROCESSES
    assert {lease.id for lease in rows} == {lease_id for _, _, lease_id, _ in answers}
    assert {lease.state for lease in rows} == {"bound"}
    assert watcher.bad == []
    assert max(watcher.row_counts) == PROCESSES // home_count
    assert sorted(path.name for path in homes[0].home.iterdir()) == ["registry.json", "registry.lock"]

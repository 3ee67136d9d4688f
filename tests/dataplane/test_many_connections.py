"""Thousands of connections come and go, some in order and some not: everything is as it was before."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.nightly import times
from tests.support.containers import Container, eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, row_of
from tests.support.supervisors import descriptors, the_supervisor

pytestmark = pytest.mark.faults

CONNECTIONS = times(1000, 5000)
RESET = struct.pack("ii", 1, 0)


def agent_descriptors(app: Container) -> tuple[int, int]:
    """How many processes of ours there are in the container, and how many descriptors the first one holds."""
    ours = app.processes(of_tests=False)
    code, said = app.exec(["ls", f"/proc/{ours[0].pid}/fd"], user="root")
    assert code == 0, said
    return len(ours), len(said.split())


@pytest.mark.timeout(300)
def test_thousands_of_connections_come_and_go(
    container: ContainerFactory, run: Runner, home: Path, fault: Callable[[str], Fault]
) -> None:
    app = container()
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    numbers = iter(range(CONNECTIONS))
    lock = threading.Lock()
    wrong: list[str] = []

    def one(number: int) -> None:
        choose = random.Random(number)
        message = choose.randbytes(choose.randrange(1, 2000))
        with socket.create_connection(("127.0.0.1", host_port), timeout=60) as client:
            client.sendall(message)
            if choose.random() < 0.3:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            client.shutdown(socket.SHUT_WR)
            received = b""
            while piece := client.recv(4096):
                received += piece
            if received != message:
                wrong.append(f"{number}: {len(received)} of {len(message)} bytes")

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                one(number)
            except OSError as error:
                wrong.append(f"{number}: {error!r}")

    for number in range(20):
        one(-1 - number)
    supervisor = the_supervisor(home)
    before, in_container = descriptors(supervisor), agent_descriptors(app)
    workers = [threading.Thread(target=work) for _ in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert wrong == []
    eventually(lambda: descriptors(supervisor) <= before, timeout_s=20, what="the supervisor's descriptors are closed")
    eventually(lambda: agent_descriptors(app) == in_container, timeout_s=20, what="the agent's are, too")
    row = fault(f"{CONNECTIONS} connections come and go, a third of them reset")
    row.note(f"descriptors {before} before, {descriptors(supervisor)} after; one process in the container all the time")

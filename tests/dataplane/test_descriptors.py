"""More connections than a supervisor with few descriptors can have: resets with a reason, and it answers all the while."""

from __future__ import annotations

import contextlib
import resource
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ContainerFactory, Runner, command_env, script
from tests.support import soak_server
from tests.support.containers import eventually
from tests.support.fault_report import Fault
from tests.support.observing import free_port, row_of, rows, status_json
from tests.support.soak_traffic import Port, answers
from tests.support.supervisors import descriptors, the_supervisor

pytestmark = pytest.mark.faults

DESCRIPTORS = 256
CLIENTS = 80


@pytest.mark.timeout(180)
def test_more_clients_than_descriptors(
    container: ContainerFactory, run: Runner, home: Path, fault: Callable[[str], Fault]
) -> None:
    source, ports = Path(soak_server.__file__).read_text(), [free_port() for _ in range(4)]
    app = container(command=["python3", "-c", source, "few", *map(str, ports)])
    subprocess.run(
        [script("autoforward"), "attach", app.name],
        env=command_env(home),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS)),
        check=True,
        capture_output=True,
        timeout=60,
    )
    forwards = [Port("few", port, row_of(run, port, status="active")["localPort"]) for port in ports]
    assert all(map(answers, forwards))
    supervisor = the_supervisor(home)
    before = descriptors(supervisor)
    outcomes: Counter[str] = Counter()
    with contextlib.ExitStack() as held:
        clients: list[tuple[Port, socket.socket]] = []
        for port in forwards * CLIENTS:
            try:
                client = held.enter_context(socket.create_connection(("127.0.0.1", port.host_port), timeout=60))
                clients.append((port, client))
            except ConnectionResetError:  # before we had looked whether we were connected
                outcomes["reset"] += 1
        # They are all there now, and those that have a relay keep it: the server waits for their line.
        listed = eventually(lambda: [row for row in rows(run) if row["reason"]], timeout_s=30, what="reasons")
        assert status_json(run)["sessions"][0]["state"] == "watching"
        for port, client in clients:
            outcomes[_outcome(client, port)] += 1
    assert set(outcomes) == {"answered", "reset"}, outcomes
    assert outcomes["answered"] >= 100, outcomes
    # Either limit may have been the one that was met first.
    either = (
        "connections are open, and one forward may have no more",
        "descriptors the last 64 are not for connections",
    )
    assert all(row["reason"].endswith(either) for row in listed), listed
    row = fault("more connections than descriptors")
    row.note(*(one["reason"] for one in listed[:2]))
    row.note_traffic(outcomes)
    for port in forwards:
        eventually(lambda port=port: answers(port), timeout_s=30, what="there is room again")
    eventually(lambda: descriptors(supervisor) <= before, timeout_s=30, what="its descriptors are as before")
    assert [one["reason"] for one in rows(run)] == [None] * 4


def _outcome(client: socket.socket, port: Port) -> str:
    try:
        client.sendall(b"who\n")
        with client.makefile("rb") as answer:
            return "answered" if answer.read() == port.who else "wrong"
    except OSError:
        return "reset"

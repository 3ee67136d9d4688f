"""Fixtures for the agent as a local child, built here (plain, and with the sanitizers), and for sessions of a fake engine."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder
from tests.support.agent_build import build
from tests.support.agent_client import AgentClient
from tests.support.direct_far import LOOPBACK, Far, NewFar
from tests.support.direct_rig import Direct
from tests.support.harness import free_port
from tests.support.plane_rig import rig
from tests.support.world import Worlds

StartAgent = Callable[..., AgentClient]
Handler = Callable[[socket.socket], None]


@pytest.fixture
def world(tmp_path: Path) -> Worlds:
    return Worlds(tmp_path / "home")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture(scope="module", params=["agent", "agent-asan"])
def binary(request: pytest.FixtureRequest) -> Path:
    return build(request.param)


@pytest.fixture
def direct(binary: Path) -> Iterator[Direct]:
    with rig() as one:
        path = Direct(one, binary)
        yield path
        path.close()


@pytest.fixture
def start(binary: Path) -> Iterator[StartAgent]:
    agents: list[AgentClient] = []

    def begin(*arguments: str, greet: bool = True) -> AgentClient:
        agents.append(AgentClient(binary, *arguments, greet=greet))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    """`serve(handler, address)` gives the port of a server with a thread for each connection."""
    listeners: list[socket.socket] = []

    def begin(handler: Handler, address: str = LOOPBACK) -> int:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, 0), family=family, backlog=1024)
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection: socket.socket) -> None:
            with connection:
                try:
                    handler(connection)
                except OSError:
                    pass  # the agent ended or reset it: the tests look at what the host sees

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield begin
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def far(start: StartAgent) -> Iterator[NewFar]:
    made: list[Far] = []

    def begin(address: str = LOOPBACK, *arguments: str) -> Far:
        agent, secret = start(*arguments), os.urandom(16)
        agent.send(decoder.encode_listen(secret, address))
        agent.wait(lambda: bool(agent.listening), "LISTENING")
        assert agent.listening[0].errno == 0 and agent.listening[0].port
        made.append(Far(agent, address, agent.listening[0].port, secret))
        return made[-1]

    yield begin
    for one in made:
        for sock in one.sockets:
            sock.close()

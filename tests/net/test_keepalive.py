"""Connections that leave this machine are asked whether they live; those that stay on it cost nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from autoforward.core.errors import AutoforwardError
from autoforward.core.model import EngineEndpoint
from autoforward.engine.client import Engine
from autoforward.engine.transport import connect
from autoforward.net.keepalive import keepalive_options
from autoforward.net.write_buffer import prepare_listener
from tests.support.harness import TIMEOUT_S

pytestmark = pytest.mark.local


def options_of(sock: socket.socket) -> list[tuple[int, int, int]]:
    return [(level, number, sock.getsockopt(level, number)) for level, number, _ in keepalive_options()]


@pytest.mark.parametrize(("address", "is_asked"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True)])
def test_clients_of_a_forward_that_others_can_reach(address: str, is_asked: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((address, 0), family=family))
        prepare_listener(listener)
        port = listener.getsockname()[1]
        client = stack.enter_context(socket.create_connection(("::1" if ":" in address else "127.0.0.1", port), 20))
        accepted, _ = listener.accept()
        stack.enter_context(accepted)
        assert bool(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) == is_asked
        if is_asked:
            assert options_of(accepted) == keepalive_options()
        assert client.getpeername()[1] == port


@pytest.fixture
def engine_elsewhere() -> Iterator[str]:
    """An engine on TCP that knows its version, and has a stream of events in which nothing happens."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(client: socket.socket) -> None:
            with client, client.makefile("rb") as requests:
                while line := requests.readline():
                    while requests.readline() not in (b"\r\n", b""):
                        pass
                    if b"/events" in line:
                        client.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                        ended.wait(TIMEOUT_S)
                        return
                    body = json.dumps({"ApiVersion": "1.41", "Version": "20"}).encode()
                    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                    client.sendall(head.encode() + body)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)


def test_an_engine_that_is_elsewhere(engine_elsewhere: str) -> None:
    with connect(engine_elsewhere) as stream:
        assert options_of(stream) == keepalive_options()
    engine = Engine(EngineEndpoint(engine_elsewhere, "a test"))
    opened: list[Any] = []

    def look(events: Any) -> None:
        opened.append(events)
        # Where the SDK's own `close` finds it.
        assert options_of(events._response.raw._fp.fp.raw._sock) == keepalive_options()
        events.close()

    # As `EngineFollower` has it: a stream that was closed surfaces as any of these.
    with contextlib.suppress(AutoforwardError, OSError, ValueError, AttributeError):
        list(engine.events(look))
    assert opened
    engine.close()

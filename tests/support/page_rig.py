"""A server of the page in this process, and a supervisor that is played, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from autoforward.control.server import Connection, ControlServer
from autoforward.core.errors import TargetError
from autoforward.net.bound_pair import bind_pair
from autoforward.state.folder import StatePaths
from autoforward.ui.access_token import Keys
from autoforward.ui.http_server import PageServer
from autoforward.ui.supervisor_feed import Feed
from tests.cli.test_listing import row
from tests.support.containers import eventually
from tests.support.harness import free_port
from tests.support.page_client import Answer, Stream, ask, head
from tests.ui.test_page import session


class FakeSupervisor:
    """Its control socket, with rows that the test sets. `looks`: how often it was asked for them; `requests`: what else."""

    def __init__(self, paths: StatePaths) -> None:
        self.rows: list[dict[str, Any]] = [row()]
        self.requests: list[dict[str, Any]] = []
        self.followers = 0
        self.looks = 0
        self._news = asyncio.Condition()
        handlers = {name: getattr(self, name) for name in ("list", "status", "events", "stop")}
        self.control = ControlServer(paths.supervisor_socket, handlers)

    async def list(self, _request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        self.looks += 1
        return {"rows": self.rows}

    async def status(self, _request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        return {"sessions": [session()]}

    async def events(self, _request: dict[str, Any], connection: Connection) -> Mapping[str, Any]:
        self.followers += 1
        gone = asyncio.create_task(connection.receive())
        try:
            while not gone.done():
                async with self._news:
                    waiting = asyncio.create_task(self._news.wait())
                    await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await waiting
                await connection.event("PORT_EVENT: {}")
        finally:
            self.followers -= 1
            gone.cancel()
        return {}

    async def stop(self, request: dict[str, Any], _connection: Connection) -> Mapping[str, Any]:
        self.requests.append(request)
        stopped = [one for one in self.rows if one["id"] == request["target"]]
        if not stopped:
            raise TargetError(f"no forward and no session is called {request['target']}")
        await self.show([one for one in self.rows if one["id"] != request["target"]])
        return {"rows": stopped}

    async def show(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        async with self._news:
            self._news.notify_all()


class Page:
    """A server, and the supervisor that it follows, if there is one."""

    def __init__(self, home: Path) -> None:
        self.paths = StatePaths(home)
        self.paths.ensure()
        self.port = free_port()
        self.keys = Keys()
        self.feed = Feed(self.paths, lambda: False)
        self.server = PageServer(bind_pair("127.0.0.1", self.port), self.feed, self.keys)

    async def ask(self, data: bytes) -> Answer:
        return await ask(self.port, data)

    def stream(self) -> Stream:
        return Stream(self.port, self.keys.token)


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[Page]:
    page = Page(home)
    await page.server.start()
    try:
        yield page
    finally:
        await page.server.aclose()


@asynccontextmanager
async def supervised(page: Page) -> AsyncIterator[FakeSupervisor]:
    supervisor = FakeSupervisor(page.paths)
    await supervisor.control.start()
    try:
        yield supervisor
    finally:
        await supervisor.control.aclose(0.0)


MANY_ROWS = [row(id=f"fwd-{n}", reason="x" * 400) for n in range(20_000)]
"""More than the buffers of a connection hold."""


@asynccontextmanager
async def a_page_that_takes_nothing(page: Page) -> AsyncIterator[None]:
    """It asks for the stream, and never reads."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", page.port))
        await loop.sock_sendall(sock, head("GET", "/api/stream", page.port, page.keys.token))
        yield


async def until(fact: Callable[[], object]) -> None:
    await asyncio.to_thread(eventually, fact, timeout_s=30.0)

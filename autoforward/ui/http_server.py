"""The page's HTTP server: one request per connection; every length, count and wait is bounded.

`/` is the page, which holds no secret. Everything under `/api` needs the token: `enter` returns it for a code, `stream`
sends the state as server-sent events, `stop` ends a forward. SPEC.md, "Page", is the specification.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import Sequence
from http import HTTPStatus

import h11

from autoforward import __version__
from autoforward.core.errors import AutoforwardError
from autoforward.net.bound_pair import BoundPair, start_listening
from autoforward.ui.access_token import Keys
from autoforward.ui.page import COMMON_HEADERS, NO_CONTENT_POLICY, load_document
from autoforward.ui.page_state import KEEPALIVE, Picture, frames, text
from autoforward.ui.request_guard import Refusal, Request, refusal
from autoforward.ui.supervisor_feed import Feed, NoSupervisorError

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""Open connections. A browser has at most six; any local process may connect, and only disconnects itself."""

MAX_STREAMS = 16
"""Of these, event streams."""

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 1024

REQUEST_TIMEOUT_S = 10.0
"""For a request to arrive completely."""

SEND_TIMEOUT_S = 20.0
"""A page that reads nothing for this long is disconnected; it reconnects by itself."""

KEEPALIVE_S = 10.0

METHODS = {"/": "GET", "/api/enter": "POST", "/api/stream": "GET", "/api/stop": "POST"}

_FORWARD_ID = re.compile(r"fwd-[0-9a-f]{1,32}", re.ASCII)

Headers = Sequence[tuple[str, str]]


class Exchange:
    """One request and its answer on a connection, which is closed afterwards."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def read(self) -> tuple[Request, bytes]:
        """The request and its body. Raises h11.RemoteProtocolError (with the status to answer), TimeoutError, ConnectionError."""
        head: h11.Request | None = None
        body = b""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self.reader.read(4096))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > MAX_BODY_BYTES:
                        raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
                    return Request(head.method.decode("ascii"), head.target.decode("latin-1"), headers), body
                else:
                    raise ConnectionError("it hung up")

    async def begin(self, status: int, content_type: str, headers: Headers = ()) -> None:
        await self._send(
            h11.Response(
                status_code=status,
                reason=HTTPStatus(status).phrase.encode(),
                headers=[*COMMON_HEADERS, ("Content-Type", content_type), ("Connection", "close"), *headers],
            )
        )

    async def write(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def answer(self, status: int, content_type: str, body: bytes, headers: Headers = ()) -> None:
        """Send a complete answer."""
        if not any(name == "Content-Security-Policy" for name, _ in headers):
            headers = [*headers, ("Content-Security-Policy", NO_CONTENT_POLICY)]
        await self.begin(status, content_type, [*headers, ("Content-Length", str(len(body)))])
        await self.write(body)
        await self._send(h11.EndOfMessage())

    async def refuse(self, refused: Refusal) -> None:
        await self.answer(refused.status, "text/plain; charset=utf-8", f"{refused.why}\n".encode(), refused.headers)

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._writer.drain()


class PageServer:
    """Serves on `pair`, which it owns from `start` on. `aclose` disconnects everyone."""

    def __init__(self, pair: BoundPair, feed: Feed, keys: Keys) -> None:
        self._pair = pair
        self._feed = feed
        self._keys = keys
        self._document = load_document()
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._streams = 0

    def __repr__(self) -> str:
        return f"<PageServer on {self._pair}, {len(self._connections)} connections>"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._pair.host_port}/"

    async def start(self) -> None:
        """Raises HostPortError."""
        start_listening(self._pair, MAX_CONNECTIONS)
        for sock in self._pair.sockets:
            server = await asyncio.start_server(self._accept, sock=sock, limit=MAX_HEAD_BYTES, backlog=MAX_CONNECTIONS)
            self._servers.append(server)

    async def aclose(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self._pair.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task.set_name("page connection")
        self._connections.add(task)
        try:
            await self._serve(Exchange(reader, writer))
        except (asyncio.CancelledError, TimeoutError, ConnectionError, h11.ProtocolError) as error:
            log.debug("a connection is cut: %s", error or type(error).__name__)
            # Drop unsent bytes: closing would wait for them.
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await writer.wait_closed()

    async def _serve(self, exchange: Exchange) -> None:
        try:
            request, body = await exchange.read()
        except h11.RemoteProtocolError as error:
            await exchange.refuse(Refusal(error.error_status_hint, "malformed request"))
            return
        refused = refusal(request, self._pair.host_port, METHODS)
        if refused is not None:
            await exchange.refuse(refused)
            return
        authorization = request.values("authorization")
        if request.target == "/":
            page = self._document
            policy = (("Content-Security-Policy", page.policy),)
            await exchange.answer(200, "text/html; charset=utf-8", page.body, policy)
        elif request.target == "/api/enter":
            token = self._keys.enter(authorization, _word_in(body, "page"), time.monotonic())
            if token is None:
                await exchange.refuse(_NO_TOKEN)
            else:
                await _answer_json(exchange, 200, {"token": token, "version": __version__})
        elif not self._keys.opens(authorization):
            await exchange.refuse(_NO_TOKEN)
        elif request.target == "/api/stop":
            await self._stop(exchange, body)
        else:
            await self._stream(exchange)

    async def _stop(self, exchange: Exchange, body: bytes) -> None:
        """End the one forward whose id is in the body; no other form of `stop`."""
        wanted = _word_in(body, "id")
        if not _FORWARD_ID.fullmatch(wanted):
            await _answer_json(exchange, 400, {"error": "no forward is named"})
            return
        try:
            result = await self._feed.ask({"op": "stop", "target": wanted})
        except NoSupervisorError as error:
            await _answer_json(exchange, 503, {"error": text(str(error))})
        except AutoforwardError as error:
            await _answer_json(exchange, 409, {"error": text(str(error))})
        else:
            await _answer_json(exchange, 200, {"stopped": len(result["rows"])})

    async def _stream(self, exchange: Exchange) -> None:
        if self._streams >= MAX_STREAMS:
            await exchange.refuse(Refusal(503, "too many pages are open"))
            return
        self._streams += 1
        # The request was read: the next read is EOF.
        gone = asyncio.create_task(exchange.reader.read(1), name="page hangs up")
        pouring = asyncio.create_task(self._pour(exchange), name="page stream")
        try:
            await asyncio.wait([gone, pouring], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams -= 1
            gone.cancel()
            pouring.cancel()
            results = await asyncio.gather(gone, pouring, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _pour(self, exchange: Exchange) -> None:
        policy = ("Content-Security-Policy", NO_CONTENT_POLICY)
        await exchange.begin(200, "text/event-stream", [policy])
        sent: Picture | None = None
        async with self._feed.viewing():
            while True:
                picture = await self._feed.next(sent, KEEPALIVE_S)
                data = KEEPALIVE if picture is None else frames(sent, picture)
                if data:
                    await exchange.write(data)
                sent = picture or sent


_NO_TOKEN = Refusal(401, "the token is missing or wrong")


def _word_in(body: bytes, name: str) -> str:
    """The text of that name in a JSON object of plain characters; empty if missing."""
    try:
        value = json.loads(body)[name]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return value if isinstance(value, str) and value.isascii() else ""


async def _answer_json(exchange: Exchange, status: int, values: dict[str, object]) -> None:
    await exchange.answer(status, "application/json", json.dumps(values).encode())

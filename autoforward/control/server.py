"""The control socket's server: how commands reach the supervisor.

One request per connection (messages: `protocol.py`); the supervisor closes it after the result or error. A foreground
command keeps its connection open, and closing it ends what the command asked for. Only processes of the same user are
served: the socket is in a folder of mode 0700, and the kernel names the peer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from autoforward.control.protocol import MAX_REQUEST_BYTES, READ_BYTES, Message, MessageDecoder, encode, error_message
from autoforward.core.errors import AutoforwardError, UsageError
from autoforward.net.peercred import Peer, peer_of

log = logging.getLogger(__name__)


class Connection:
    """The connection of one command. `send` never raises: after a hangup it drops messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = MessageDecoder(MAX_REQUEST_BYTES, "the request")

    async def send(self, message: Mapping[str, Any]) -> None:
        try:
            self._writer.write(encode(message))
            await self._writer.drain()
        except ConnectionError:
            log.debug("a command went away before it had its answer")

    async def progress(self, text: str) -> None:
        await self.send({"type": "progress", "text": text})

    async def event(self, line: str) -> None:
        """A PORT_EVENT line, without its newline."""
        await self.send({"type": "event", "line": line})

    async def receive(self) -> Message | None:
        """The next message from the command; None after a hangup. Raises ProtocolError."""
        while (message := self._decoder.next_message()) is None:
            try:
                data = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return message

    async def aclose(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:  # closed by the peer
            pass

    def peer(self) -> Peer:
        """The peer's process and user."""
        return peer_of(self._writer.get_extra_info("socket"))


Handler = Callable[[Message, Connection], Awaitable[Mapping[str, Any]]]


class ControlServer:
    """Serves `handlers` (by `op`) on a Unix socket of mode 0600. `aclose` lets running requests answer first."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_found(self) -> bool:
        """Whether commands can find the socket file; another process may have removed it."""
        return os.path.lexists(self._path)

    async def start(self) -> None:
        """Bind and listen. The caller holds the instance lock: an existing socket file is a dead supervisor's.

        Call it again if the file was removed; running requests continue. Raises OSError.
        """
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, str(self._path))
        self._path.chmod(0o600)

    def stop_accepting(self) -> None:
        """Accept no new requests; running ones continue. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def aclose(self, timeout_s: float) -> None:
        self.stop_accepting()
        if self._tasks:
            _done, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            task.set_name("control connection")
            self._tasks.add(task)
        connection = Connection(reader, writer)
        try:
            await self._serve(connection)
        except asyncio.CancelledError:
            log.debug("a control connection was cut at the end")
        finally:
            if task is not None:
                self._tasks.discard(task)
            await connection.aclose()

    async def _serve(self, connection: Connection) -> None:
        peer = connection.peer()
        if not peer.is_trusted:
            log.warning("refused a control connection of user %s", peer.uid)
            return
        try:
            request = await connection.receive()
            if request is None:
                return
            handler = self._handlers.get(str(request.get("op")))
            if handler is None:
                raise UsageError(
                    f"the supervisor does not know the request {str(request.get('op'))[:40]!r}",
                    hint="it may be of an older version: `autoforward status` shows it",
                )
            result = await handler(request, connection)
            await connection.send({"type": "result", **result})
        except AutoforwardError as error:
            await connection.send(error_message(error))
        except (KeyError, TypeError, ValueError) as error:
            log.exception("a request could not be understood")
            await connection.send(error_message(AutoforwardError(f"the request is malformed: {error!r}")))

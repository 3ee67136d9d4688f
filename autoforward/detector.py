"""The watch on one container: the watcher's exec stream, read on the control loop without blocking it.

Snapshots go to `on_snapshot`, complete ones only. `on_lost` is called exactly once, when the stream is no good any more:
the next snapshot of the next detector repairs whatever was missed. Lines for the watcher (`kill PID TOKEN`) go in through
`send_line`. A watcher that does not answer a ping is as lost as one whose stream has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Protocol

from autoforward.errors import ProtocolError
from autoforward.model import Snapshot
from autoforward.streams import STDERR, STDOUT, EngineStream

log = logging.getLogger(__name__)

PING_INTERVAL_S = 20.0
PONG_TIMEOUT_S = 10.0

MAX_OUTBOX_BYTES = 256 * 1024
"""Kill lines that wait for the engine to take them: thousands of relays. More means that nothing moves any more."""

MAX_STDERR_LINE_BYTES = 4096


class SnapshotParser(Protocol):
    """The watcher's stdout, bytes in, snapshots out. Raises ProtocolError for what no watcher of ours would say."""

    def feed(self, data: bytes) -> list[Snapshot]: ...


class Detector:
    """Owns the stream. `start` once, `close` any time (idempotent, calls nobody)."""

    def __init__(
        self,
        stream: EngineStream,
        parser: SnapshotParser,
        on_snapshot: Callable[[Snapshot], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._parser = parser
        self._on_snapshot = on_snapshot
        self._on_lost = on_lost
        self._outbox = bytearray()
        self._stderr = b""
        self._last_words = ""
        self._pings = itertools.count(1)
        self._awaited_pong: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Detector on {self._stream!r}>"

    def start(self) -> None:
        self._loop.add_reader(self._stream.fileno(), self._read)
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)
        self._read()

    def send_line(self, line: str) -> None:
        """Queue a line for the watcher's stdin. After the end it is dropped: there is nobody left to tell."""
        if self._stream.fileno() < 0:
            return
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            self._lose("the watcher takes no more orders")
            return
        self._outbox += line.encode() + b"\n"
        self._flush()

    def ping_now(self) -> None:
        """Ask at once whether the watcher is there (after a pause of the container, or of the machine)."""
        if self._awaited_pong is None and self._stream.fileno() >= 0:
            self._ping()

    def close(self) -> None:
        """Let go of the stream; the watcher sees EOF on its stdin, ends, and takes the session's relays with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fd = self._stream.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
            self._stream.shutdown_write()
            self._stream.close()

    def _lose(self, reason: str) -> None:
        if self._stream.fileno() >= 0:
            self.close()
            self._on_lost(reason)

    def _read(self) -> None:
        try:
            chunks = self._stream.recv()
            if chunks is None:
                self._lose(self._last_words or "the watcher's stream ended")
                return
            for stream, payload in chunks:
                if stream == STDOUT:
                    for snapshot in self._parser.feed(payload):
                        self._on_snapshot(snapshot)
                elif stream == STDERR:
                    self._take_stderr(payload)
                elif payload:
                    self._last_words = payload[:200].decode("utf-8", "replace")
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._lose(str(error))

    def _take_stderr(self, payload: bytes) -> None:
        *lines, rest = (self._stderr + payload).split(b"\n")
        self._stderr = rest[:MAX_STDERR_LINE_BYTES]
        for line in lines:
            text = line[:MAX_STDERR_LINE_BYTES].decode("utf-8", "replace")
            if text == f"pong {self._awaited_pong}":
                self._awaited_pong = None
                self._schedule(PING_INTERVAL_S, self._ping)
            elif text.startswith("AF fatal "):
                self._last_words = text.removeprefix("AF fatal ")
            else:
                log.debug("watcher: %r", text)

    def _flush(self) -> None:
        fd = self._stream.fileno()
        try:
            while self._outbox:
                del self._outbox[: self._stream.send(self._outbox)]
        except BlockingIOError:
            self._loop.add_writer(fd, self._flush)
            return
        except OSError as error:
            self._lose(str(error))
            return
        self._loop.remove_writer(fd)

    def _ping(self) -> None:
        self._awaited_pong = next(self._pings)
        self.send_line(f"ping {self._awaited_pong}")
        self._schedule(PONG_TIMEOUT_S, lambda: self._lose("the watcher does not answer"))

    def _schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream.fileno() >= 0:
            self._timer = self._loop.call_later(delay_s, callback)

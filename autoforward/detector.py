"""The watch on one container: the watcher's exec stream, read on the control loop without blocking it.

Frames (complete snapshots of the socket tables) go to `on_frame`, answers to `on_answer`, orders for the watcher in
through `send`. `on_lost` is called exactly once, when the stream is no good any more: the first frame of the next
detector repairs whatever was missed. A watcher that does not answer a ping is as lost as one whose stream has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from autoforward.errors import ProtocolError
from autoforward.lanes.watcher import (
    Answer,
    Fatal,
    Frame,
    LineSplitter,
    Pong,
    WatcherStream,
    encode_ping,
    parse_answer,
    printable,
)
from autoforward.streams import STDERR, STDOUT, EngineStream

log = logging.getLogger(__name__)

PING_INTERVAL_S = 20.0
PONG_TIMEOUT_S = 10.0

MAX_OUTBOX_BYTES = 256 * 1024
"""Kill lines that wait for the engine to take them: thousands of relays. More means that nothing moves any more."""


class Detector:
    """Owns the stream. `start` once, `close` any time (idempotent, calls nobody)."""

    def __init__(
        self,
        stream: EngineStream,
        on_frame: Callable[[Frame], None],
        on_answer: Callable[[Answer], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._parser = WatcherStream()
        self._stderr = LineSplitter()
        self._on_frame = on_frame
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._outbox = bytearray()
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

    def send(self, order: bytes) -> None:
        """Queue an order (`lanes.watcher.encode_*`) for the watcher's stdin; after the end it is dropped."""
        if self._stream.fileno() < 0:
            return
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            self._lose("the watcher takes no more orders")
            return
        self._outbox += order
        self._flush()

    def ping_now(self, timeout_s: float = PONG_TIMEOUT_S) -> None:
        """Ask at once whether the watcher is there (after a pause of the container, or of the machine)."""
        if self._stream.fileno() >= 0:
            self._ping(timeout_s)

    def retire(self) -> None:
        """Say nothing more, but stay: its relays live as long as its stream. `close` then ends both."""
        self._on_frame = self._on_answer = self._on_lost = _say_nothing

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
                    for event in self._parser.feed(payload):
                        if isinstance(event, Frame):
                            self._on_frame(event)
                elif stream == STDERR:
                    for line in self._stderr.feed(payload):
                        self._take_answer(line)
                elif payload:
                    self._last_words = printable(payload)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._lose(str(error))

    def _take_answer(self, line: bytes) -> None:
        match parse_answer(line):
            case Pong(number):
                if number == self._awaited_pong:
                    self._awaited_pong = None
                    self._schedule(PING_INTERVAL_S, self._ping)
            case Fatal(reason):
                self._last_words = reason
            case None:
                log.debug("watcher: %s", printable(line))
            case answer:
                self._on_answer(answer)

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

    def _ping(self, timeout_s: float = PONG_TIMEOUT_S) -> None:
        self._awaited_pong = next(self._pings)
        self.send(encode_ping(self._awaited_pong))
        self._schedule(timeout_s, lambda: self._lose("the watcher does not answer"))

    def _schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream.fileno() >= 0:
            self._timer = self._loop.call_later(delay_s, callback)


def _say_nothing(_word: object) -> None:
    """What a retired watcher has to say is for nobody."""

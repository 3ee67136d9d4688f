"""The shell watcher's client: its exec stream, read on the control loop without blocking.

Frames (complete snapshots of the socket tables) go to `on_frame`, answers to `on_answer`, commands to the watcher through
`send`. `on_lost` is called exactly once, when the stream is unusable: the next detector's first frame repairs what was
missed. A watcher that does not answer a ping is lost too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable

from autoforward.core import budget
from autoforward.core.errors import ProtocolError
from autoforward.core.masking.command_line import mask_command_line
from autoforward.core.pause import PAUSE_ANSWER_TIMEOUT_S, PauseQuestion
from autoforward.core.text import LineSplitter, decoded_line
from autoforward.engine.exec_stream import STDERR, STDOUT, ExecStream
from autoforward.lanes import watcher_protocol

log = logging.getLogger(__name__)

PING_INTERVAL_S = 20.0
PONG_TIMEOUT_S = 10.0
MAX_OUTBOX_BYTES = 256 * 1024
"""Kill commands queued for the engine: thousands of relays. Beyond this the stream is stuck."""


TURN_FRAMES = 8
TURN_LINES = 256
"""Processed per turn of the control loop: about 5 ms. A watcher sends one frame at a time."""


class Detector:
    """Owns the stream. Call `start` once, `close` at any time (idempotent, no callbacks)."""

    def __init__(
        self,
        stream: ExecStream,
        on_frame: Callable[[watcher_protocol.Frame], None],
        on_answer: Callable[[watcher_protocol.Answer], None],
        on_lost: Callable[[str], None],
        on_unsure: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._parser = watcher_protocol.WatcherStream()
        self._stderr = LineSplitter()
        self._on_frame = on_frame
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._pause = PauseQuestion(on_unsure)
        self._outbox = bytearray()
        self._last_stderr = ""
        self._pings = itertools.count(1)
        self._awaited_pong: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_over_budget = False
        """Whether it was lost because it cost too much."""
        self.network = b""
        """The network namespace that it reports, before the first frame or never."""
        self._lines: deque[bytes] = deque()
        now_s = self._loop.time()
        self._frame_budget = budget.Budget(budget.WATCHER_FRAMES, now_s)
        self._socket_budget = budget.Budget(budget.SNAPSHOTS, now_s)
        self._line_budget = budget.Budget(budget.WATCHER_LINES, now_s)

    def __repr__(self) -> str:
        return f"<Detector on {self._stream!r}>"

    def start(self) -> None:
        self._loop.add_reader(self._stream.fileno(), self._read)
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)
        self._read()

    def send(self, order: bytes) -> None:
        """Queue a command (`watcher_protocol.encode_*`) for the watcher's stdin; dropped after the end."""
        if self._stream.fileno() < 0:
            return
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            self._lose("the watcher takes no more orders")
            return
        self._outbox += order
        self._flush()

    def ping_now(self, timeout_s: float = PONG_TIMEOUT_S) -> None:
        """Ping the watcher now (after a pause of the container, or a sleep of the machine)."""
        if self._stream.fileno() >= 0:
            self._ping(timeout_s)

    def pause(self, paused: bool) -> None:
        """Whether the engine reports the container as paused. The watcher answers a pending ping once it is resumed."""
        if self._stream.fileno() < 0:
            return
        if self._pause.answer(paused):
            self._ping()
        elif self._pause.is_asked:
            self._no_answer()

    def _no_answer(self) -> None:
        if self._pause.is_paused:
            return
        if self._pause.is_asked:
            self._lose("the watcher does not answer")
        else:
            self._pause.ask()
            self._schedule(PAUSE_ANSWER_TIMEOUT_S, self._no_answer)

    def retire(self) -> None:
        """Make no more callbacks, but stay: the relays end with the stream. `close` ends both."""
        self._on_frame = self._on_answer = self._on_lost = _ignore

    def close(self) -> None:
        """Close the stream; the watcher sees EOF on stdin, ends, and kills the session's relays."""
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
            said = b""
            if not self._has_more:
                chunks = self._stream.recv()
                if chunks is None:
                    self._lose(self._last_stderr or "the watcher's stream ended")
                    return
                said = b"".join(payload for stream, payload in chunks if stream == STDOUT)
                for stream, payload in chunks:
                    if stream == STDERR:
                        self._lines.extend(self._stderr.feed(payload))
                    elif stream != STDOUT and payload:
                        self._last_stderr = decoded_line(payload)
            self._take_turn(said)
        except BlockingIOError:
            return
        except budget.OverBudgetError as error:
            self.is_over_budget = True
            self._lose(f"the watcher costs too much: {error}")
        except (OSError, ProtocolError) as error:
            self._lose(str(error))

    @property
    def _has_more(self) -> bool:
        return self._parser.has_more or bool(self._lines)

    def _take_turn(self, said: bytes) -> None:
        """Process what came, up to one turn's amount; the rest waits for a turn or for the budgets."""
        lines = [self._lines.popleft() for _ in range(min(TURN_LINES, len(self._lines)))]
        for line in lines:
            self._take_answer(line)
        frames = 0
        rows = 0
        newest: watcher_protocol.Frame | None = None
        for event in self._parser.feed(said, TURN_FRAMES):
            if isinstance(event, watcher_protocol.Frame):
                frames, rows, newest = frames + 1, rows + len(event.table.rows), event
            else:
                self.network = event.network
        if newest is not None:
            self._on_frame(newest)
        now_s = self._loop.time()
        rest_s = max(
            self._frame_budget.spend(frames, now_s),
            self._socket_budget.spend(rows + frames * budget.SNAPSHOT_COST, now_s),
            self._line_budget.spend(sum(budget.name_cost(len(line)) for line in lines), now_s),
        )
        if (rest_s or self._has_more) and self._stream.fileno() >= 0:
            self._loop.remove_reader(self._stream.fileno())
            self._loop.call_later(rest_s, self._resume)

    def _resume(self) -> None:
        if self._stream.fileno() >= 0:
            self._loop.add_reader(self._stream.fileno(), self._read)
            self._read()

    def _take_answer(self, line: bytes) -> None:
        match watcher_protocol.parse_answer(line):
            case watcher_protocol.Pong(number):
                if self._pause.is_paused:
                    self._pause.ask()
                elif number == self._awaited_pong:
                    self._awaited_pong = None
                    self._pause.is_asked = False
                    self._schedule(PING_INTERVAL_S, self._ping)
            case watcher_protocol.Fatal(reason):
                self._last_stderr = reason
            case None:
                log.debug("watcher: %s", mask_command_line(decoded_line(line)))
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
        self.send(watcher_protocol.encode_ping(self._awaited_pong))
        self._schedule(timeout_s, self._no_answer)

    def _schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream.fileno() >= 0:
            self._timer = self._loop.call_later(delay_s, callback)


def _ignore(_word: object) -> None:
    """The handler of a retired watcher's output."""

"""Many streams on one carrier: the base of the exec mux and of the trunk.

Data plane thread only. Output of one turn of the loop is one write. A stream is bounded by the agent's credit, and all
streams' queued output by `HIGH_WATER_BYTES`, so that one bulk transfer starves no other stream. The agent's bytes are
hostile until decoded, and cost budget: a turn takes `TURN_FRAMES`, and over budget (`core.budget`) the carrier is not
read, so that its sender must wait.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol import frames
from autoforward.core.budget import EMPTY_FRAMES, FRAMES, FRAMES_OF_A_STREAM, Budget
from autoforward.dataplane.mux.handshake import DirectConnector
from autoforward.dataplane.mux.stream import MuxStream, StreamOwner, errno_text
from autoforward.net.loop import Loop

HIGH_WATER_BYTES = 256 * 1024
"""Queued output before streams have to wait."""

MAX_OUT_BYTES = 4 * 1024 * 1024
"""Frames without client bytes (new connections, credit, ends) may exceed that. An agent that takes none of them while
clients come and go is as good as lost.
"""

TURN_FRAMES = 512
"""Frames, and sockets of snapshots, that one carrier may process in one turn: about 0.5 ms. The rest waits for the next
turn; 64 connections in request-response bring 64.
"""

LEAST_CREDIT_BYTES = frames.MIN_WINDOW // 4
"""An agent sends credit in quarters of its window; smaller amounts are counted as empty."""

JOINED_BYTES = 4096
"""Payloads up to this are copied behind their header: one chunk is cheaper than two."""


class Carrier(Protocol):
    """Non-blocking; `fileno` is -1 once closed."""

    def fileno(self) -> int: ...
    def send(self, data: bytes | bytearray | memoryview, /) -> int: ...
    def close(self) -> None: ...


S = TypeVar("S", bound=Carrier)


class Multiplexer(Generic[S]):
    """Owns its carrier. Subclasses read it, pass decoded events to `take`, and handle a loss."""

    def __init__(self, loop: Loop, stream: S, decoder: wire.Decoder, direct: DirectConnector | None) -> None:
        self._loop = loop
        self._stream = stream
        self._decoder = decoder
        self.direct = direct
        """Gives bulk streams a connection of their own; None: no direct path."""
        self._channels: dict[int, MuxStream] = {}
        self._turns: deque[MuxStream] = deque()
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._flush_due = False
        self._mask = 0
        self._heard_s = time.monotonic()
        self._unanswered = False
        """Whether something was sent since the last frame arrived."""
        self._frames = Budget(FRAMES, self._heard_s)
        self._empty_frames = Budget(EMPTY_FRAMES, self._heard_s)
        self._extra = self._empty = 0
        """Of this turn: the cost of frames beyond one each, and the number of empty ones."""
        self._is_held = False
        self._takers: dict[type[Any], Callable[[Any], None]] = {
            frames.Data: self._take_data,
            frames.Opened: self._take_opened,
            frames.Eof: self._take_eof,
            frames.Credit: self._take_credit,
            frames.Refused: self._take_refused,
            frames.Reset: self._take_reset,
            frames.Move: self._take_move,
        }

    @property
    def is_backlogged(self) -> bool:
        return self._out_size > HIGH_WATER_BYTES

    @property
    def is_closed(self) -> bool:
        return self._stream.fileno() < 0

    @property
    def is_idle(self) -> bool:
        """Whether it carries no stream."""
        return not self._channels

    def _lose(self, reason: str) -> None:
        """The carrier broke, or the peer violated the protocol."""
        raise NotImplementedError

    def _read(self) -> None:
        """The carrier is readable."""
        raise NotImplementedError

    def _start_watching(self) -> None:
        self._loop.adopt(self)
        self._mask = selectors.EVENT_READ
        self._loop.watch(self._stream.fileno(), self._mask, self._on_stream)

    def close(self) -> None:
        """Close it; its streams are broken. Idempotent."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        self._loop.disown(self)
        self._loop.watch(fd, 0, self._on_stream)
        self._stream.close()
        self._turns.clear()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.broke("the connection to the container was lost")

    def _add(self, number: int, relay: StreamOwner, window: int, *, datagrams: bool) -> MuxStream:
        channel = self._channels[number] = MuxStream(self, number, relay, window, datagrams=datagrams)
        self._empty_frames.earn(FRAMES_OF_A_STREAM)
        return channel

    # Called by streams.

    def send(self, frame: bytes | memoryview) -> None:
        """Queue a frame; it is written at the end of this turn."""
        self._out.append(frame)
        self._out_size += len(frame)
        if not self._flush_due:
            self._flush_due = True
            self._loop.at_turn_end(self._flush)

    def send_data(self, number: int, payload: bytes | memoryview) -> None:
        if len(payload) <= JOINED_BYTES:
            self.send(wire.encode_data(number, bytes(payload)))
        else:
            self.send(wire.encode_data_header(number, len(payload)))
            self.send(payload)

    def queue_turn(self, channel: MuxStream) -> None:
        """This stream has bytes that it may send, and waits for room."""
        self._turns.append(channel)
        if not self._flush_due:
            self._flush_due = True
            self._loop.at_turn_end(self._flush)

    def forget(self, number: int) -> None:
        self._channels.pop(number, None)

    # The carrier.

    def _on_stream(self, events: int) -> None:
        if events & selectors.EVENT_READ and not self._is_held:
            self._read()
        if events & selectors.EVENT_WRITE and self._stream.fileno() >= 0:
            self._flush()

    def _flush(self) -> None:
        """Write everything queued at once; then give streams their turns, round-robin, while there is room."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        self._flush_due = True  # frames queued from here on are written below
        try:
            while True:
                while self._turns and not self.is_backlogged:
                    channel = self._turns.popleft()
                    if channel.take_turn():
                        self._turns.append(channel)
                if not self._out:
                    break
                joined = self._out[0] if len(self._out) == 1 else b"".join(self._out)
                sent = self._stream.send(joined)
                self._unanswered = True
                if sent < len(joined):
                    self._out = [memoryview(joined)[sent:]]
                    self._out_size = len(joined) - sent
                    break
                self._out = []
                self._out_size = 0
                if not self._turns:
                    break
        except BlockingIOError:
            self._out = [joined]
        except OSError as error:
            self._lose(f"the stream to the container broke: {error.strerror}")
            return
        self._flush_due = False
        if self._out_size > MAX_OUT_BYTES:
            self._lose("the agent does not read what it is sent")
            return
        self._watch()

    def _watch(self) -> None:
        events = (0 if self._is_held else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._out else 0)
        if events != self._mask:
            self._mask = events
            self._loop.watch(self._stream.fileno(), events, self._on_stream)

    def _take_turn(self, data: bytes) -> None:
        """Process what came, up to one turn's amount; the rest waits for a turn or for the budget.

        Raises ProtocolError, also OverBudgetError.
        """
        now_s = self._heard_s = time.monotonic()
        taken = self._decoder.feed(data, TURN_FRAMES)
        for event in taken:
            self._take(event)
        rest_s = self._spend(len(taken), now_s)
        if (rest_s or self._decoder.has_more) and not self.is_closed:
            self._hold(rest_s)

    def _spend(self, count: int, now_s: float) -> float:
        """Account for a turn of `count` frames; returns how long to stop reading. Raises OverBudgetError."""
        rest_s = self._frames.spend(count + self._extra, now_s)
        if self._empty:
            rest_s = max(rest_s, self._empty_frames.spend(self._empty, now_s))
        self._extra = self._empty = 0
        return rest_s

    def _hold(self, rest_s: float) -> None:
        """Stop reading for `rest_s`: the kernel's buffer fills, and the sender has to wait."""
        if not self._is_held:
            self._is_held = True
            self._watch()
            self._loop.call_later(rest_s, self._resume)

    def _resume(self) -> None:
        if not self.is_closed:
            self._is_held = False
            self._read()
        if not self.is_closed:
            self._watch()

    # The agent's frames about streams. One for a closed stream may have crossed its end.

    def _take(self, event: frames.Event) -> None:
        self._takers[type(event)](event)

    def _take_opened(self, event: frames.Opened) -> None:
        self._empty += 1  # which address answered does not matter here
        if (channel := self._channels.get(event.stream)) is not None:
            channel.answered()

    def _take_data(self, event: frames.Data) -> None:
        if (channel := self._channels.get(event.stream)) is not None:
            channel.take_data(event.payload, last=event.last)
            self._extra += channel.extra_cost
        else:
            self._empty += 1

    def _take_eof(self, event: frames.Eof) -> None:
        if (channel := self._channels.get(event.stream)) is not None:
            channel.take_eof()
        else:
            self._empty += 1

    def _take_credit(self, event: frames.Credit) -> None:
        channel = self._channels.get(event.stream)
        if channel is None or event.size < LEAST_CREDIT_BYTES:
            self._empty += 1
        if channel is not None:
            channel.take_credit(event.size)

    def _take_refused(self, event: frames.Refused) -> None:
        if (channel := self._channels.pop(event.stream, None)) is not None:
            channel.refused(event.errno)
        else:
            self._empty += 1

    def _take_reset(self, event: frames.Reset) -> None:
        if (channel := self._channels.pop(event.stream, None)) is not None:
            channel.reset(errno_text(event.errno) if event.errno else "the agent ended the connection")
        else:
            self._empty += 1

    def _take_move(self, event: frames.Move) -> None:
        if (channel := self._channels.get(event.stream)) is not None:
            channel.take_move()
        else:
            self._empty += 1

    def _pass_over(self, _event: object) -> None:
        """Count an event that carries nothing else."""
        self._empty += 1

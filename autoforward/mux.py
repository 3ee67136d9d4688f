"""The agent lane on the host: one exec stream, a channel per client connection (protocol: SPEC.md, "Agent").

Runs in the data plane's thread. What goes out in one turn of the loop goes out as one write; what a stream may send is
bounded by the credit that the agent gave, and what all streams may have waiting here by `HIGH_WATER_BYTES`, so that one
bulk transfer starves nobody. Everything that the agent says is hostile until decoded; a violation ends the mux, and with
it this session's connections, nobody else's.
"""

from __future__ import annotations

import functools
import logging
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from autoforward import frames, wire
from autoforward.direct import DirectGate
from autoforward.errors import ProtocolError
from autoforward.lanes.watcher import LineSplitter, printable
from autoforward.model import DialAddress, Transport
from autoforward.mux_channel import WINDOW_BYTES, FarEnd, MuxChannel, in_words
from autoforward.streams import STDERR, STDOUT, EngineStream

if TYPE_CHECKING:
    from autoforward.dataplane import DataPlane, Timer

log = logging.getLogger(__name__)

MuxEvent = frames.Hello | frames.SnapshotEvent | frames.Process

HIGH_WATER_BYTES = 256 * 1024
"""What may wait for the engine to take it before streams have to queue."""

JOINED_BYTES = 4096
"""Payloads up to this are copied behind their header: one piece is cheaper than two."""

PING_INTERVAL_S = 4.0
MAX_SNAPSHOTS = 100
"""From one ping to the next; ten a second are the most that we ask for. Control would drown in what it cannot apply."""

MAX_PROCESSES = 8192
"""From one ping to the next, twice what a snapshot holds: each socket is named once, and all anew when it is asked anew."""

MAX_LOGGED_LINES = 20
"""Of the agent's stderr, from one ping to the next: it has a word or two to say, and who has its pipe can pour in anything."""

SILENCE_LIMIT_S = 12.0
"""The agent answers a ping at once; three unanswered ones mean that nobody is there."""


class Mux:
    """Owns the stream. Events that are not about a channel go to `on_event`; `on_lost` is called once, unless it is closed."""

    def __init__(
        self,
        plane: DataPlane,
        stream: EngineStream,
        on_event: Callable[[MuxEvent], None],
        on_lost: Callable[[str], None],
        direct_address: str | None = None,
    ) -> None:
        """`direct_address`: one of the container's own at which this machine may reach it; None: no direct path."""
        self._plane = plane
        self._stream = stream
        self._on_event = on_event
        self._on_lost = on_lost
        self._decoder = wire.Decoder()
        self._stderr = LineSplitter()
        self._channels: dict[int, MuxChannel] = {}
        self._turns: deque[MuxChannel] = deque()
        self._last_number = 0
        self._window = 0
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._flush_due = False
        self._mask = 0
        self._heard_s = time.monotonic()
        self._snapshots = self._processes = self._logged_lines = 0
        self._last_words = ""
        self._timer: Timer | None = None
        self._is_retired = False
        self.direct = DirectGate(plane, self, direct_address) if direct_address is not None else None

    def __repr__(self) -> str:
        return f"<Mux {self._stream!r}, {len(self._channels)} channels>"

    def start(self) -> None:
        self._plane.adopt(self)
        self._mask = selectors.EVENT_READ
        self._plane.watch(self._stream.fileno(), self._mask, self._on_stream)
        self.send(wire.encode_hello(WINDOW_BYTES))
        self._timer = self._plane.call_later(PING_INTERVAL_S, self._ping)
        self._read()

    @property
    def is_backlogged(self) -> bool:
        return self._out_size > HIGH_WATER_BYTES

    @property
    def is_up(self) -> bool:
        """Whether the agent has answered the hello and the stream still stands: channels can be opened."""
        return self._window > 0 and self._stream.fileno() >= 0

    def open(self, relay: FarEnd, transport: Transport, dials: Sequence[DialAddress]) -> MuxChannel:
        """A channel for this relay. Only while `is_up`."""
        number = self._last_number % frames.MAX_STREAM + 1
        while number in self._channels:
            number = number % frames.MAX_STREAM + 1
        self._last_number = number
        channel = self._channels[number] = MuxChannel(self, number, relay, self._window, datagrams=transport == "udp")
        frame = _open_frame(transport, tuple(dials))
        self.send(frame[:4] + number.to_bytes(4, "big") + frame[8:])
        return channel

    def watch(self, interval_ms: int, *, udp: bool) -> None:
        """Ask for snapshots at that pace."""
        self.send(wire.encode_watch(interval_ms, udp=udp))

    @property
    def is_closed(self) -> bool:
        return self._stream.fileno() < 0

    def retire(self) -> None:
        """Say nothing more, and end once the last channel has: looked for with each ping."""
        self._on_event = self._on_lost = _say_nothing
        self._is_retired = True

    def close(self) -> None:
        """End it: the agent sees EOF on its stdin, channels are broken off. Idempotent; `on_lost` is not called."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.direct is not None:
            self.direct.close()
        self._plane.disown(self)
        self._plane.watch(fd, 0, self._on_stream)
        self._stream.shutdown_write()
        self._stream.close()
        self._turns.clear()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.broke("the connection to the container was lost")

    def _lose(self, reason: str) -> None:
        if self._stream.fileno() >= 0:
            self.close()
            self._on_lost(self._last_words or reason)

    # What channels use.

    def send(self, frame: bytes | memoryview) -> None:
        """Put a frame behind what is waiting; it goes out at the end of this turn."""
        self._out.append(frame)
        self._out_size += len(frame)
        if not self._flush_due:
            self._flush_due = True
            self._plane.at_turn_end(self._flush)

    def send_data(self, number: int, payload: bytes | memoryview) -> None:
        if len(payload) <= JOINED_BYTES:
            self.send(wire.encode_data(number, bytes(payload)))
        else:
            self.send(wire.encode_data_header(number, len(payload)))
            self.send(payload)

    def queue_turn(self, channel: MuxChannel) -> None:
        """This channel has bytes that it may send, and waits for room."""
        self._turns.append(channel)
        if not self._flush_due:
            self._flush_due = True
            self._plane.at_turn_end(self._flush)

    def forget(self, number: int) -> None:
        self._channels.pop(number, None)

    # The stream.

    def _on_stream(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read()
        if events & selectors.EVENT_WRITE and self._stream.fileno() >= 0:
            self._flush()

    def _flush(self) -> None:
        """One write for all that waits; then as many turns as there is room for, round and round."""
        fd = self._stream.fileno()
        if fd < 0:
            return
        self._flush_due = True  # what is put in from here on goes out below
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
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if events != self._mask:
            self._mask = events
            self._plane.watch(fd, events, self._on_stream)

    def _read(self) -> None:
        try:
            chunks = self._stream.recv()
            if chunks is None:
                self._lose("the agent's stream ended")
                return
            self._heard_s = time.monotonic()
            # The engine's frames cut ours anywhere: put together again, fewer pieces go further.
            said = [payload for stream, payload in chunks if stream == STDOUT]
            if said:
                for event in self._decoder.feed(said[0] if len(said) == 1 else b"".join(said)):
                    self._take(event)
            for stream, payload in chunks:
                if stream == STDOUT:
                    continue
                if stream == STDERR:
                    self._take_words(self._stderr.feed(payload))
                elif payload:
                    self._last_words = printable(payload)
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            self._lose(str(error))

    def _take_words(self, lines: Sequence[bytes]) -> None:
        for line in lines[: MAX_LOGGED_LINES - self._logged_lines]:
            self._logged_lines += 1
            log.info("agent: %s", printable(line))
        if lines:
            self._last_words = printable(lines[-1])

    def _take(self, event: frames.Event) -> None:
        if isinstance(event, frames.Data):
            channel = self._channels.get(event.stream)
            if channel is not None:
                channel.take_data(event.payload, last=event.last)
            return
        match event:
            case frames.Eof(stream):
                if (channel := self._channels.get(stream)) is not None:
                    channel.take_eof()
            case frames.Credit(stream, size):
                if (channel := self._channels.get(stream)) is not None:
                    channel.take_credit(size)
            case frames.Refused(stream, number):
                if (channel := self._channels.pop(stream, None)) is not None:
                    channel.refused(number)
            case frames.Reset(stream, number):
                if (channel := self._channels.pop(stream, None)) is not None:
                    channel.reset(in_words(number) if number else "the agent ended the connection")
            case frames.Move(stream):
                if (channel := self._channels.get(stream)) is not None:
                    channel.take_move()
            case frames.Listening():
                if self.direct is None:
                    raise ProtocolError("the agent listens although nobody asked it to")
                self.direct.listening(event)
            case frames.Hello(window):
                self._window = window
                self._on_event(event)
            case frames.Ping(payload):
                self.send(wire.encode_pong(payload))
            case frames.Pong(payload):
                if self.direct is not None:
                    self.direct.pong(payload)
            case frames.Bye(reason, text):
                self._last_words = f"the agent ended: {text or reason}"
            case frames.SnapshotEvent():
                self._snapshots += 1
                if self._snapshots > MAX_SNAPSHOTS:
                    raise ProtocolError("the agent sends snapshots without end")
                self._on_event(event)
            case frames.Process():
                self._processes += 1
                if self._processes > MAX_PROCESSES:
                    raise ProtocolError("the agent names processes without end")
                self._on_event(event)

    def check(self, timeout_s: float) -> None:
        """Is the agent there? It is lost unless it has said something by then."""
        asked_s = time.monotonic()

        def look() -> None:
            if self._heard_s < asked_s and not self.is_closed:
                self._lose(f"the agent did not answer within {timeout_s:.0f} s")

        self.send(wire.encode_ping(bytes(8)))
        self._plane.call_later(timeout_s, look)

    def _ping(self) -> None:
        silent_s = time.monotonic() - self._heard_s
        if silent_s > SILENCE_LIMIT_S:
            self._lose(f"the agent has been silent for {silent_s:.0f} s")
            return
        if self._is_retired and not self._channels:
            self.close()
            return
        self._snapshots = self._processes = self._logged_lines = 0
        self.send(wire.encode_ping(bytes(8)))
        self._timer = self._plane.call_later(PING_INTERVAL_S, self._ping)


def _say_nothing(_what: object) -> None:
    """What a retired mux tells."""


@functools.lru_cache(maxsize=1024)
def _open_frame(transport: Transport, dials: tuple[DialAddress, ...]) -> bytes:
    """An OPEN of stream 1: parsing the same addresses for every connection took a fifth of its time."""
    return wire.encode_open(1, transport, dials[0].port, [dial.host for dial in dials])

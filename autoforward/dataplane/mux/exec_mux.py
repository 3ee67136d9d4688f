"""The agent lane on the host: one exec stream with a mux stream per client connection (SPEC.md, "Agent protocol").

If the container's address is reachable, the first connection requests a trunk, and later ones use it; the exec stream
stays for the agent's own events, and for connections while there is no trunk. A protocol violation ends the mux and this
session's connections only.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from autoforward.agent_protocol import decoder, frames
from autoforward.core.budget import (
    NAMES,
    PING_COST,
    PROCESS_COST,
    SNAPSHOT_COST,
    SNAPSHOTS,
    Budget,
    OverBudgetError,
    name_cost,
)
from autoforward.core.errors import ProtocolError
from autoforward.core.model import DialAddress, Transport
from autoforward.core.pause import PAUSE_ANSWER_TIMEOUT_S, PauseQuestion
from autoforward.core.text import LineSplitter, decoded_line
from autoforward.dataplane.mux.handshake import DirectConnector
from autoforward.dataplane.mux.multiplexer import Multiplexer
from autoforward.dataplane.mux.stream import WINDOW_BYTES, MuxStream, PatientOwner, StreamOwner
from autoforward.dataplane.mux.trunk import TrunkManager
from autoforward.engine.exec_stream import STDERR, STDOUT, ExecStream
from autoforward.net.loop import Loop, Timer

log = logging.getLogger(__name__)

PING_INTERVAL_S = 4.0
MAX_SNAPSHOTS = 100
"""Between two pings; the fastest interval gives ten a second. More would flood control."""

MAX_PROCESSES = 8192
"""Between two pings, twice a snapshot's sockets: each socket is named once, and all again after each WATCH."""

MAX_LOGGED_LINES = 20
"""Of the agent's stderr, between two pings: it has a line or two to write, and whoever holds its pipe can write anything."""

MAX_STDERR_BYTES = 4096
"""Of one chunk of the agent's stderr; its end counts."""

MAX_NAMES = frames.MAX_ENTRIES
"""Processes queued for control: as many as a snapshot has sockets."""

SILENCE_LIMIT_S = 13.0
"""The agent answers a ping at once; it is lost after three unanswered ones, when the fourth is due."""


BEHIND_REST_S = 0.05
"""How long snapshots and names wait for control to take what it has been told before."""

AT_THE_PAUSE = b"paused??"


class Mux(Multiplexer[ExecStream]):
    """Events about no stream go to `on_event`; `on_lost` is called once, unless the mux is closed.

    `on_unsure` asks whether the container is paused; `pause` takes the answer, which may not come.
    """

    def __init__(
        self,
        loop: Loop,
        stream: ExecStream,
        on_event: Callable[[frames.MuxEvent], None],
        on_lost: Callable[[str], None],
        on_unsure: Callable[[], None],
        direct_address: str | None = None,
        is_behind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`direct_address`: one of the container's own at which this machine may reach it now; None: no direct path.

        `is_behind`: whether control has so much to take that snapshots and names wait.
        """
        super().__init__(loop, stream, decoder.Decoder(), None)
        self._on_event = on_event
        self._on_lost = on_lost
        self._is_behind = is_behind
        self._pause = PauseQuestion(on_unsure)
        self._stderr = LineSplitter()
        self._last_number = 0
        self._window = 0
        self._snapshots = self._processes = self._logged_lines = 0
        self._last_stderr = ""
        self.is_over_budget = False
        """Whether it was lost because it cost too much."""
        self._newest: frames.SnapshotEvent | None = None
        self._names: OrderedDict[int, frames.Process] = OrderedDict()
        self._reports_later = False
        self._snapshot_budget = Budget(SNAPSHOTS, self._heard_s)
        self._name_budget = Budget(NAMES, self._heard_s)
        self._timer: Timer | None = None
        self._is_retired = False
        self.direct = self._gate = DirectConnector(loop, self, direct_address)
        self._trunks = TrunkManager(loop, self, self._gate)
        self._doubts = itertools.count(1)
        self._doubt = b""
        """The ping whose answer proves that the agent lives; empty: no doubt."""
        self._waiting: list[tuple[PatientOwner, Transport, Sequence[DialAddress]]] = []
        self._takers |= {
            frames.Hello: self._take_hello,
            frames.Ping: self._take_ping,
            frames.Pong: self._take_pong,
            frames.Listening: self._take_listening,
            frames.Network: self._take_network,
            frames.SnapshotEvent: self._take_snapshot,
            frames.Process: self._take_process,
            frames.Bye: self._take_bye,
        }

    def __repr__(self) -> str:
        return f"<Mux {self._stream!r}, {len(self._channels)} channels>"

    def start(self) -> None:
        self._start_watching()
        self.send(decoder.encode_hello(WINDOW_BYTES))
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)
        self._read()

    @property
    def is_up(self) -> bool:
        """Whether the agent has answered the hello and the stream is open: streams can be opened."""
        return self._window > 0 and self._stream.fileno() >= 0

    @property
    def window(self) -> int:
        """The agent's credit for a new stream, in bytes; 0 before its hello."""
        return self._window

    def doubt(self) -> None:
        """The trunk has ended, and the agent may have too: new connections wait for its next frame."""
        if not self._doubt:
            self._doubt = b"lives" + next(self._doubts).to_bytes(8, "big")[-3:]
            self.send(decoder.encode_ping(self._doubt))

    def join(self, relay: PatientOwner, transport: Transport, dials: Sequence[DialAddress]) -> bool:
        """Open a stream for this relay, now or once the agent is known to live; returns which. Only while `is_up`."""
        if self._doubt:
            self._waiting.append((relay, transport, dials))
            return False
        relay.attach(self.open(relay, transport, dials))
        relay.opened()
        return True

    def _close_early(self) -> None:
        self._doubt = b""
        waiting, self._waiting = self._waiting, []
        for relay, transport, dials in waiting:
            if not relay.is_over:
                self.join(relay, transport, dials)

    def open(self, relay: StreamOwner, transport: Transport, dials: Sequence[DialAddress]) -> MuxStream:
        """Open a stream for this relay. Only while `is_up`."""
        trunk = self._trunks.get()
        number = self._last_number % frames.MAX_STREAM + 1
        while number in self._channels or self._trunks.has(number):
            number = number % frames.MAX_STREAM + 1
        self._last_number = number
        payload = _open_payload(transport, tuple(dials))
        if trunk is not None and (channel := trunk.open(number, relay, payload, datagrams=transport == "udp")):
            return channel
        channel = self._add(number, relay, self._window, datagrams=transport == "udp")
        self.send(decoder.encode_open_payload(number, payload))
        return channel

    def watch(self, interval_ms: int, *, udp: bool) -> None:
        """Request snapshots at this interval."""
        self.send(decoder.encode_watch(interval_ms, udp=udp))

    def allow_direct(self, address: str | None) -> None:
        """Where this machine can reach the container from now on; None: new streams use the exec stream."""
        if not self.is_closed:
            self._trunks.allow(address)

    def pause(self, paused: bool) -> None:
        """Whether the engine reports the container as paused. The agent answers a pending ping once it is resumed."""
        if self.is_closed:
            return
        if not self._pause.answer(paused):
            if self._pause.is_asked:
                self._judge_silence()
            return
        self._heard_s = time.monotonic()
        self.send(decoder.encode_ping(AT_THE_PAUSE))

    def _judge_silence(self) -> None:
        """Called when the engine says that it is not paused, or does not answer."""
        silent_s = time.monotonic() - self._heard_s
        if self._timer is not None:
            self._timer.cancel()
        if not self._pause.is_paused and silent_s > SILENCE_LIMIT_S:
            self._lose(f"the agent has been silent for {silent_s:.0f} s")
            return
        self._pause.is_asked = False
        self._ping()

    def retire(self) -> None:
        """Send nothing more, and end after the last stream's end, which each ping checks."""
        self._on_event = self._on_lost = _ignore
        self._is_retired = True

    def close(self) -> None:
        """Close the stream: the agent sees EOF on stdin, streams are broken. Idempotent; does not call `on_lost`."""
        if self.is_closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._trunks.close()
        self._gate.close()
        self._newest = None
        self._names.clear()
        self._stream.shutdown_write()
        super().close()
        waiting, self._waiting = self._waiting, []
        for relay, _transport, _dials in waiting:
            relay.start_over(retry=False)

    def _lose(self, reason: str) -> None:
        if self._stream.fileno() >= 0:
            self._on_lost(reason)  # before its connections: those that start over need another agent
            self.close()

    # The stream.

    def _read(self) -> None:
        try:
            if self._decoder.has_more:
                self._take_turn(b"")
                return
            chunks = self._stream.recv()
            if chunks is None:
                self._lose(self._last_stderr or "the agent's stream ended")
                return
            # The engine splits frames anywhere: joined, they make fewer chunks.
            said = [payload for stream, payload in chunks if stream == STDOUT]
            self._extra += len(chunks)
            for stream, payload in chunks:
                if stream == STDOUT:
                    continue
                if stream == STDERR:
                    self._empty += len(payload) // 16
                    self._take_stderr(self._stderr.feed(payload[-MAX_STDERR_BYTES:]))
                elif payload:
                    self._last_stderr = decoded_line(payload)
            self._take_turn(said[0] if len(said) == 1 else b"".join(said))
        except BlockingIOError:
            return
        except OverBudgetError as error:
            self.is_over_budget = True
            self._lose(f"the agent costs too much: {error}")
        except ProtocolError as error:
            self._lose(str(error))
        except OSError as error:
            self._lose(self._last_stderr or str(error))

    def _take_stderr(self, lines: Sequence[bytes]) -> None:
        for line in lines[: MAX_LOGGED_LINES - self._logged_lines]:
            self._logged_lines += 1
            log.info("agent: %s", decoded_line(line))
        if lines:
            self._last_stderr = decoded_line(lines[-1])

    def _take_hello(self, event: frames.Hello) -> None:
        self._window = event.window
        self._on_event(event)

    def _take_ping(self, event: frames.Ping) -> None:
        self._empty += PING_COST
        self.send(decoder.encode_pong(event.payload))

    def _take_pong(self, event: frames.Pong) -> None:
        self._empty += 1
        if event.payload == self._doubt:
            self._close_early()
        if self._pause.is_paused:
            self._pause.ask()
        self._gate.pong(event.payload)
        self._trunks.pong(event.payload)

    def _take_listening(self, event: frames.Listening) -> None:
        self._empty += 1
        self._gate.listening(event)

    def _take_network(self, event: frames.Network) -> None:
        self._count_snapshot()
        self._on_event(event)

    def _count_snapshot(self) -> None:
        self._snapshots += 1
        if self._snapshots > MAX_SNAPSHOTS:
            raise ProtocolError("the agent sends snapshots without end")

    def _take_snapshot(self, event: frames.SnapshotEvent) -> None:
        self._count_snapshot()
        self._extra += len(event.entries)
        self._newest = event
        self._tell_control()

    def _take_process(self, event: frames.Process) -> None:
        self._processes += 1
        if self._processes > MAX_PROCESSES:
            raise ProtocolError("the agent names processes without end")
        self._extra += PROCESS_COST
        self._names[event.inode] = event
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
        self._tell_control()

    def _take_bye(self, event: frames.Bye) -> None:
        self._empty += 1
        self._last_stderr = f"the agent ended: {event.text or event.reason}"

    def _tell_control(self) -> None:
        """Send control the newest snapshot and the queued names, as far as the budget allows; the rest later."""
        if self._reports_later:
            return
        now_s = time.monotonic()
        if self._newest is not None and not (rest_s := self._rest_s(self._snapshot_budget, now_s)):
            event, self._newest = self._newest, None
            self._snapshot_budget.spend(SNAPSHOT_COST + len(event.entries), now_s)
            self._on_event(event)
        while self._newest is None and self._names and not (rest_s := self._rest_s(self._name_budget, now_s)):
            _inode, name = self._names.popitem(last=False)
            self._name_budget.spend(name_cost(len(name.command_line)), now_s)
            self._on_event(name)
        if self._newest is not None or self._names:
            self._reports_later = True
            self._loop.call_later(rest_s, self._report_later)

    def _rest_s(self, budget: Budget, now_s: float) -> float:
        return BEHIND_REST_S if self._is_behind() else budget.rest_s(now_s)

    def _report_later(self) -> None:
        self._reports_later = False
        if not self.is_closed:
            self._tell_control()

    def check(self, timeout_s: float) -> None:
        """Ping the agent: it is lost unless it sends something within `timeout_s`."""
        asked_s = time.monotonic()

        def check() -> None:
            if self._heard_s < asked_s and not self.is_closed and not self._pause.is_paused:
                self._lose(f"the agent did not answer within {timeout_s:.0f} s")

        self.send(decoder.encode_ping(bytes(8)))
        self._loop.call_later(timeout_s, check)

    def _ping(self) -> None:
        silent_s = time.monotonic() - self._heard_s
        if self._pause.is_paused:
            self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)
            return
        if silent_s > SILENCE_LIMIT_S:
            self._pause.ask()
            self._timer = self._loop.call_later(PAUSE_ANSWER_TIMEOUT_S, self._judge_silence)
            return
        if self._is_retired and self.is_idle and self._trunks.is_idle:
            self.close()
            return
        self._trunks.maintain()
        self._snapshots = self._processes = self._logged_lines = 0
        self.send(decoder.encode_ping(bytes(8)))
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)


def _ignore(_what: object) -> None:
    """The event handler of a retired mux."""


@functools.lru_cache(maxsize=1024)
def _open_payload(transport: Transport, dials: tuple[DialAddress, ...]) -> bytes:
    """Cached: parsing the same addresses took a fifth of a connection's time."""
    return decoder.open_payload(transport, dials[0].port, [dial.host for dial in dials])

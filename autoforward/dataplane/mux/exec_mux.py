"""The agent lane on the host: one exec stream, a mux stream per client connection (protocol: SPEC.md, "Agent").

Where the container's address can be reached, the first connection is the occasion to ask for a trunk, and what comes
after it is opened there; the exec stream stays for what the agent says of itself, and for connections while there is no
trunk. A violation ends the mux, and with it this session's connections, no other session's.
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
from autoforward.core.pause import ENGINE_WORD_S, PauseQuestion
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
"""From one ping to the next; ten a second are the most that we ask for. Control would drown in what it cannot apply."""

MAX_PROCESSES = 8192
"""From one ping to the next, twice what a snapshot holds: each socket is named once, and all again after each WATCH."""

MAX_LOGGED_LINES = 20
"""Of the agent's stderr, from one ping to the next: it has a word or two to say, and who has its pipe can pour in anything."""

MAX_WORDS_BYTES = 4096
"""Of what the agent's stderr has at once; the end of it counts."""

MAX_NAMES = frames.MAX_ENTRIES
"""Processes that wait for control to be told of them: as many as a snapshot has sockets."""

SILENCE_LIMIT_S = 13.0
"""The agent answers a ping at once; three unanswered ones, and a fourth that is due, mean that it is gone."""


BEHIND_REST_S = 0.05
"""How long snapshots and names wait for control to take what it has been told before."""

AT_THE_PAUSE = b"paused??"


class Mux(Multiplexer[ExecStream]):
    """Events that are not about a stream go to `on_event`; `on_lost` is called once, unless it is closed.

    `on_unsure` asks whether the container is paused: the answer comes by `pause`, or, if it is not, not at all.
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
        self._last_words = ""
        self.is_over_budget = False
        """Whether it was lost because it cost too much."""
        self._newest: frames.SnapshotEvent | None = None
        self._names: OrderedDict[int, frames.Process] = OrderedDict()
        self._tells_later = False
        self._snapshot_budget = Budget(SNAPSHOTS, self._heard_s)
        self._name_budget = Budget(NAMES, self._heard_s)
        self._timer: Timer | None = None
        self._is_retired = False
        self.direct = self._gate = DirectConnector(loop, self, direct_address)
        self._trunks = TrunkManager(loop, self, self._gate)
        self._doubts = itertools.count(1)
        self._doubt = b""
        """The ping whose answer shows that the agent lives; none: there is no doubt."""
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
        """Whether the agent has answered the hello and the stream still stands: channels can be opened."""
        return self._window > 0 and self._stream.fileno() >= 0

    @property
    def window(self) -> int:
        """What the agent accepts on a new stream, in bytes; 0 before its hello."""
        return self._window

    def doubt(self) -> None:
        """The agent's other connection has ended, and it may have ended with it: what is new waits for a word of it."""
        if not self._doubt:
            self._doubt = b"lives" + next(self._doubts).to_bytes(8, "big")[-3:]
            self.send(decoder.encode_ping(self._doubt))

    def join(self, relay: PatientOwner, transport: Transport, dials: Sequence[DialAddress]) -> bool:
        """A stream for this relay, now or once it is sure that the agent lives; whether it is open. Only while `is_up`."""
        if self._doubt:
            self._waiting.append((relay, transport, dials))
            return False
        relay.attach(self.open(relay, transport, dials))
        relay.opened()
        return True

    def _let_join(self) -> None:
        self._doubt = b""
        waiting, self._waiting = self._waiting, []
        for relay, transport, dials in waiting:
            if not relay.is_over:
                self.join(relay, transport, dials)

    def open(self, relay: StreamOwner, transport: Transport, dials: Sequence[DialAddress]) -> MuxStream:
        """A stream for this relay. Only while `is_up`."""
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
        """Ask for snapshots at that pace."""
        self.send(decoder.encode_watch(interval_ms, udp=udp))

    def allow_direct(self, address: str | None) -> None:
        """Where this machine may reach the container from now on; None: what is new stays on the exec stream."""
        if not self.is_closed:
            self._trunks.allow(address)

    def pause(self, paused: bool) -> None:
        """The engine says whether the container is paused. One ping waits there, for which its agent has a word at last."""
        if self.is_closed:
            return
        if not self._pause.answer(paused):
            if self._pause.is_asked:
                self._judge_silence()
            return
        self._heard_s = time.monotonic()
        self.send(decoder.encode_ping(AT_THE_PAUSE))

    def _judge_silence(self) -> None:
        """The engine has said that it is not paused, or nothing."""
        silent_s = time.monotonic() - self._heard_s
        if self._timer is not None:
            self._timer.cancel()
        if not self._pause.is_paused and silent_s > SILENCE_LIMIT_S:
            self._lose(f"the agent has been silent for {silent_s:.0f} s")
            return
        self._pause.is_asked = False
        self._ping()

    def retire(self) -> None:
        """Send nothing more, and end after the last stream has ended: checked with each ping."""
        self._on_event = self._on_lost = _say_nothing
        self._is_retired = True

    def close(self) -> None:
        """End it: the agent sees EOF on its stdin, channels are broken off. Idempotent; `on_lost` is not called."""
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
            self._on_lost(reason)  # before its connections: what starts over is for another agent
            self.close()

    # The stream.

    def _read(self) -> None:
        try:
            if self._decoder.has_more:
                self._take_turn(b"")
                return
            chunks = self._stream.recv()
            if chunks is None:
                self._lose(self._last_words or "the agent's stream ended")
                return
            # The engine's frames cut ours anywhere: put together again, fewer pieces go further.
            said = [payload for stream, payload in chunks if stream == STDOUT]
            self._extra += len(chunks)
            for stream, payload in chunks:
                if stream == STDOUT:
                    continue
                if stream == STDERR:
                    self._empty += len(payload) // 16
                    self._take_words(self._stderr.feed(payload[-MAX_WORDS_BYTES:]))
                elif payload:
                    self._last_words = decoded_line(payload)
            self._take_turn(said[0] if len(said) == 1 else b"".join(said))
        except BlockingIOError:
            return
        except OverBudgetError as error:
            self.is_over_budget = True
            self._lose(f"the agent costs too much: {error}")
        except ProtocolError as error:
            self._lose(str(error))
        except OSError as error:
            self._lose(self._last_words or str(error))

    def _take_words(self, lines: Sequence[bytes]) -> None:
        for line in lines[: MAX_LOGGED_LINES - self._logged_lines]:
            self._logged_lines += 1
            log.info("agent: %s", decoded_line(line))
        if lines:
            self._last_words = decoded_line(lines[-1])

    def _take_hello(self, event: frames.Hello) -> None:
        self._window = event.window
        self._on_event(event)

    def _take_ping(self, event: frames.Ping) -> None:
        self._empty += PING_COST
        self.send(decoder.encode_pong(event.payload))

    def _take_pong(self, event: frames.Pong) -> None:
        self._empty += 1
        if event.payload == self._doubt:
            self._let_join()
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
        self._last_words = f"the agent ended: {event.text or event.reason}"

    def _tell_control(self) -> None:
        """The newest snapshot and the names that are not told yet, as far as the budget goes; the rest of it later."""
        if self._tells_later:
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
            self._tells_later = True
            self._loop.call_later(rest_s, self._tell_the_rest)

    def _rest_s(self, budget: Budget, now_s: float) -> float:
        return BEHIND_REST_S if self._is_behind() else budget.rest_s(now_s)

    def _tell_the_rest(self) -> None:
        self._tells_later = False
        if not self.is_closed:
            self._tell_control()

    def check(self, timeout_s: float) -> None:
        """Is the agent there? It is lost unless it has said something by then."""
        asked_s = time.monotonic()

        def look() -> None:
            if self._heard_s < asked_s and not self.is_closed and not self._pause.is_paused:
                self._lose(f"the agent did not answer within {timeout_s:.0f} s")

        self.send(decoder.encode_ping(bytes(8)))
        self._loop.call_later(timeout_s, look)

    def _ping(self) -> None:
        silent_s = time.monotonic() - self._heard_s
        if self._pause.is_paused:
            self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)
            return
        if silent_s > SILENCE_LIMIT_S:
            self._pause.ask()
            self._timer = self._loop.call_later(ENGINE_WORD_S, self._judge_silence)
            return
        if self._is_retired and self.is_idle and self._trunks.is_idle:
            self.close()
            return
        self._trunks.maintain()
        self._snapshots = self._processes = self._logged_lines = 0
        self.send(decoder.encode_ping(bytes(8)))
        self._timer = self._loop.call_later(PING_INTERVAL_S, self._ping)


def _say_nothing(_what: object) -> None:
    """What a retired mux tells."""


@functools.lru_cache(maxsize=1024)
def _open_payload(transport: Transport, dials: tuple[DialAddress, ...]) -> bytes:
    """Parsing the same addresses for every connection took a fifth of its time."""
    return decoder.open_payload(transport, dials[0].port, [dial.host for dial in dials])

"""The host's carriers as a fuzz target: a real data plane, its relays and sockets, with an agent that says valid frames.

An input is a script of steps, a byte for which and some for how: what the agent says, whether it reads, what clients do,
and how much time passes. The data plane's loop runs in the calling thread; whenever it waits, the next steps are taken.
Wrong is, beside what `agent_model` holds to the protocol: a fault in the loop, a connection to a right agent that is given up,
bytes that do not arrive, memory beyond what is said, more frames in a turn than other sessions can wait for, and whatever is
left once all has ended.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from autoforward.agent_protocol import decoder, frames
from autoforward.core.model import DialAddress
from autoforward.dataplane.messages import (
    MuxDirect,
    MuxEnd,
    MuxLost,
    MuxPace,
    MuxRetire,
    MuxStart,
    PlaneEvent,
    Route,
    Serve,
    StreamFailed,
    StreamWanted,
)
from autoforward.dataplane.mux import multiplexer as carrier_module
from autoforward.dataplane.mux.exec_mux import PING_INTERVAL_S, SILENCE_LIMIT_S
from autoforward.dataplane.mux.stream import WINDOW_BYTES
from autoforward.dataplane.plane import DataPlane
from autoforward.engine.exec_stream import SocketStream
from autoforward.net import loop
from autoforward.net.poller import default_poller
from tests.fuzz.agent_model import WINDOW, AgentStream, ModelAgent, Path
from tests.fuzz.client_model import SMALL_BYTES, Client
from tests.fuzz.laws import cost_of, must, must_be_cheap
from tests.support import agent_wire

TURN_LIMIT: Final = 4096
"""Frames in one turn of the loop."""

OUT_LIMIT: Final = 640 * 1024
"""What may wait for an agent, in memory: a carrier's high water, a frame of each stream, and answers."""

MAX_CLIENTS: Final = 8
CREDIT_STEP: Final = 32 * 1024
FLOOD: Final = 16_384
FLOODS: Final = 3
SETTLE_TURNS: Final = 300
_MUX = [f"dataplane.mux.{name}" for name in ("exec_mux", "multiplexer", "trunk")]
_CLOCKED = ("net.loop", *_MUX, "dataplane.udp")


class World:
    """One data plane and who is around it, for one script. Stands in for the plane's poller: each wait is a moment here."""

    def __init__(self, script: bytes) -> None:
        self._steps = iter(script)
        self._clock_s = self._spoke_s = 1000.0
        self._floods = 0
        self._settling = self._ends_at = 0
        self._frames = 0
        self._lost = 0
        self._crumb = 1 << 20
        self._clients: list[Client] = []
        self._closing = contextlib.ExitStack()
        listener = self._listen(1)
        self._address = listener.getsockname()
        direct = self._listen(0)
        self._direct_port: int = direct.getsockname()[1]
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
        host_end, agent_end = socket.socketpair()
        host_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BYTES)
        agent_end.setblocking(False)
        self.agent = ModelAgent(Path(agent_end, "agent", framed=True), direct)
        self.agent.exec_path.say(decoder.encode_hello(WINDOW))
        self.plane = DataPlane(self._notice)
        self.plane._loop._poller.close()
        self._poller = default_poller()
        self.plane._loop._poller = self  # type: ignore[assignment]
        self.plane.submit(Serve("web", (listener,)))
        self.plane.submit(Route("web", "s", "tcp", (DialAddress("127.0.0.1", 80),)))
        udp = self._closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        self._udp_address = udp.getsockname()
        self.plane.submit(Serve("dns", (udp,)))
        self.plane.submit(Route("dns", "s", "udp", (DialAddress("127.0.0.1", 53),)))
        self.plane.submit(MuxStart("s", SocketStream(host_end, b"", "x"), 100, "127.0.0.1"))
        self._asker = self._closing.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        self._asker.setblocking(False)

    def _listen(self, backlog: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64 + backlog)
        listener.setblocking(False)
        return self._closing.enter_context(listener)

    def monotonic(self) -> float:
        self._clock_s += 1e-6  # what is due at once is due in the next turn
        return self._clock_s

    def end(self) -> None:
        if not self.plane._ended:  # a law was broken
            self.plane._loop._stopping = True
            self.plane._loop._run()
        for client in self._clients:
            client.close(reset=True)
        self.agent.close()
        self._closing.close()

    def _notice(self, notice: PlaneEvent) -> None:
        if isinstance(notice, StreamWanted):  # it came while there was no agent
            self.plane.submit(StreamFailed(notice.relay_id, "no other lane"))
        if isinstance(notice, MuxLost):
            self._lost += 1
            must(self._lost == 1, "a loss is told of once")
            # It answers pings when the script says so; who is silent for too long is lost by right.
            is_silent = self._clock_s - self._spoke_s > SILENCE_LIMIT_S
            must(is_silent or not self.agent.is_right, "a right agent is not given up", notice)
            self.agent.is_right = False

    def counted(self, take: Callable[[Any, frames.Event], None]) -> Callable[[Any, frames.Event], None]:
        def counting(carrier: Any, event: frames.Event) -> None:
            self._frames += 1
            take(carrier, event)

        return counting

    # The poller's part.

    def change(self, fd: int, before: int, events: int) -> None:
        self._poller.change(fd, before, events)

    def close(self) -> None:
        self._poller.close()

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        self._look()
        self._moment()
        ready = self._poller.wait(0)
        if not ready and timeout_s is not None and self._settling:
            self._clock_s += timeout_s
        return ready

    def _moment(self) -> None:
        self.agent.accept()
        if (what := next(self._steps, None)) is not None:
            self._step(what)
        else:
            self._settle()
        for path in filter(None, (self.agent.exec_path, self.agent.trunk)):
            if path.flush(self._crumb) and path is self.agent.exec_path:
                self._spoke_s = self._clock_s
        self.agent.hear()
        for client in self._clients:
            client.hear()

    # Steps.

    def _next(self) -> int:
        return next(self._steps, 0)

    def _size(self) -> int:
        return 1 << self._next() % 18

    def _stream(self) -> AgentStream:
        which = self._next()
        streams = self.agent.streams
        # What never was is a stream, too: what is said of it has crossed its end.
        if streams and which < 240:
            return streams[which % len(streams)]
        return AgentStream(1_000_000 + which, self.agent.exec_path, which % 2 == 0, WINDOW)

    def _client(self) -> Client | None:
        which = self._next()
        return self._clients[which % len(self._clients)] if self._clients else None

    def _step(self, what: int) -> None:
        agent, client = self.agent, None
        match what % 32:
            case 0 | 1 if len(self._clients) < MAX_CLIENTS:
                self._clients.append(Client(self._address))
            case 2 | 3 if (client := self._client()) is not None:
                client.say(self._size())
            case 4 if (client := self._client()) is not None:
                client.end()
            case 5 if (client := self._client()) is not None:
                client.close(reset=bool(self._next() & 1))
            case 6 if (client := self._client()) is not None:
                client.reads = not client.reads
            case 7:
                agent.say_opened(self._stream())
            case 8:
                agent.say_refused(self._stream(), 111)
            case 9 | 10:
                agent.say_data(self._stream(), self._size() - 1)
            case 11:
                agent.say_eof(self._stream())
            case 12:
                agent.say_reset(self._stream(), 104)
            case 13:
                stream = self._stream()
                agent.say_credit(stream, CREDIT_STEP << self._next() % 3)
            case 14:
                agent.say_move(self._stream())
            case 15:
                agent.say_direct(self._stream(), self._size())
            case 16:
                agent.say_pongs()
            case 17 if agent.listens:
                port = (self._direct_port, self._direct_port, 1, 0)[self._next() % 4]
                agent.listens = bool(port)
                agent.exec_path.say(agent_wire.encode_listening(port, 0 if port else 98))
            case 18 | 19:
                agent.greet(right=what < 200)
            case 20:
                path = agent.trunk if agent.trunk is not None and self._next() & 1 else agent.exec_path
                path.reads = not path.reads
            case 21:
                self._clock_s += self._next() / 50
            case 22:
                self._clock_s += PING_INTERVAL_S / 2
            case 23:
                with contextlib.suppress(BlockingIOError):
                    self._asker.sendto(bytes(self._size() - 1 & 0x3FFF), self._udp_address)
            case 24:
                self._snapshot(self._next())
            case 25:
                agent.exec_path.say(agent_wire.encode_process(self._next(), 7, b"node\0x"))
            case 26:
                self._flood(self._next())
            case 27:
                self._crumb = self._size()
            case 28:
                agent.exec_path.out += b"\2\0\0\0\0\0\0\5help\n"
            case 29:
                agent.end_trunk()
            case 30:
                self._command(self._next())
            case 31 if what > 200:
                agent.is_right = False
                agent.exec_path.close()

    def _snapshot(self, how: int) -> None:
        entries = [frames.SocketEntry("tcp", 1 + port, "127.0.0.1", 0, 100 + port) for port in range(how % 40)]
        self.agent.exec_path.say(agent_wire.encode_snapshot(entries, cut=how > 200))

    def _command(self, how: int) -> None:
        match how % 8:
            case 0:
                self.plane.submit(MuxRetire("s"))
            case 1:
                self.plane.submit(MuxEnd("s"))
            case 2 | 3:
                self.plane.submit(MuxDirect("s", None if how & 8 else "127.0.0.1"))
            case _:
                self.plane.submit(MuxPace("s", how * 10))

    def _flood(self, how: int) -> None:
        """Small frames, one like the other, as many as fit a turn."""
        if self._floods == FLOODS:
            return
        self._floods += 1
        stream = self._stream()
        if how % 4 == 0:
            self._out_of_budget()
            stream.path.say(decoder.encode_ping(bytes(8)) * FLOOD if stream.path is self.agent.exec_path else b"")
        elif how % 4 == 1:
            self._out_of_budget()
            stream.path.say(decoder.encode_eof(0xFFFF_FFF0) * FLOOD)
        elif how % 4 == 2:
            count = min(FLOOD, stream.may_say // 2)
            for _ in range(count):
                self.agent.say_data(stream, 2)
        else:
            self._out_of_budget()
            self.agent.exec_path.say(agent_wire.encode_snapshot([]) * 90)

    def _out_of_budget(self) -> None:
        """It is allowed frame by frame; to give that agent up is allowed as well."""
        self.agent.is_right = False

    # Laws.

    def _look(self) -> None:
        frames_of_turn, self._frames = self._frames, 0
        must(frames_of_turn <= TURN_LIMIT, "a turn is bounded", frames_of_turn)
        for carrier in self._carriers():
            must(
                cost_of(carrier._out) <= OUT_LIMIT,
                "what waits for the agent is bounded",
                carrier,
                cost_of(carrier._out),
            )
            for channel in carrier._channels.values():
                held = sum(map(len, channel._parts))
                must(held <= frames.MAX_PAYLOAD, "a datagram is bounded", channel, held)
                must_be_cheap(channel._queue, channel)
        for relay in self.plane._relays.values():
            must(relay._outbox.size <= WINDOW_BYTES, "no more than a window waits for a client", relay)
            must_be_cheap(relay._outbox._chunks, relay)

    def _carriers(self) -> Iterator[Any]:
        for owned in self.plane._loop._owned:
            if isinstance(owned, carrier_module.Multiplexer):
                yield owned

    # The end.

    def _settle(self) -> None:
        """All come to their end; then the loop is ended, and nothing may be left."""
        self._settling += 1
        agent = self.agent
        self._crumb = 1 << 20
        for path in filter(None, (agent.exec_path, agent.trunk)):
            path.reads = True
        for client in self._clients:
            client.reads = True
            client.end()
        agent.greet()
        agent.say_pongs()
        for stream in agent.streams:
            agent.say_credit(stream, WINDOW)
            agent.say_move(stream)
            # Both ends of one that is about to move are told once it has.
            if not stream.host_moved or stream.moved:
                agent.say_eof(stream)
        if self._ends_at == 0 and (self._settling == SETTLE_TURNS or not self.plane._relays):
            must(not self.plane._relays or not agent.is_right, "each connection ends", self.plane._relays)
            self._ends_at = self._settling + 8
            self.plane.submit(MuxEnd("s"))
        elif self._settling == self._ends_at:
            self._all_is_over()
            self.plane._loop._stopping = True

    def _all_is_over(self) -> None:
        for client in self._clients:
            client.hear()
        must(not self.plane._relays, "connections end with their carrier", self.plane._relays)
        must(not self.plane._loop._owned, "what is owned is closed", self.plane._loop._owned)
        must(len(self.plane._loop._watched) == 3, "what has ended is not watched", self.plane._loop._watched)


def _descriptors() -> int:
    return len(list(FilePath("/proc/self/fd").iterdir()))


def carrier(data: bytes) -> None:
    """A script of steps."""
    faults: list[object] = []
    log = SimpleNamespace(exception=lambda *said: faults.append((said, sys.exc_info()[1])), info=lambda *_: None)
    before = _descriptors()
    world = World(data)
    clock = SimpleNamespace(monotonic=world.monotonic, thread_time=time.thread_time)
    with contextlib.ExitStack() as patches:
        patches.callback(world.end)
        for name in _CLOCKED:
            module = sys.modules[f"autoforward.{name}"]
            patches.enter_context(mock.patch.object(module, "time", clock))
        patches.enter_context(mock.patch.object(loop, "log", log))
        take = carrier_module.Multiplexer._take
        patches.enter_context(mock.patch.object(carrier_module.Multiplexer, "_take", world.counted(take)))
        world.plane._loop._run()
    must(not faults, "no fault in the loop", faults)
    must(_descriptors() <= before, "no descriptor is left", before)

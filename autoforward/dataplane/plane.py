"""The data plane: one thread, one selector, every byte of every relay.

Control (asyncio, in another thread) and this loop exchange messages and share nothing else, so that the data plane could
become a process. Commands go in through `submit`, events come out through the owner's `notify`, which is called in the
data plane's thread and must only pass the event on.

Every open descriptor is in `_relays` (clients), `_owned` (streams, clients whose server has closed) or `_served`
(listeners, which the caller owns).

Not asyncio, because a selector loop takes 93 µs of CPU per relayed connection and asyncio's streams 217.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field

from autoforward.dataplane import messages
from autoforward.dataplane.agents import Agents
from autoforward.dataplane.client_state import ClosedClientPoller
from autoforward.dataplane.connections import MAX_CONNECTIONS, ConnectionLimits, Drains
from autoforward.dataplane.exec_far_end import ExecFarEnd
from autoforward.dataplane.relay import Relay
from autoforward.dataplane.times import TIMES, Times
from autoforward.dataplane.udp import UdpServer
from autoforward.net.loop import Loop
from autoforward.net.poller import READ
from autoforward.net.write_buffer import prepare_listener

ACCEPTS_PER_TURN = 64
"""Connections accepted from one listener per turn."""

OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True)
class _Served:
    sockets: tuple[socket.socket, ...] = ()
    relays: dict[int, Relay] = field(default_factory=dict)
    route: messages.Route | None = None
    ended_last: str | None = None
    udp: tuple[UdpServer, ...] = ()
    counters: messages.ForwardCounters = field(default_factory=messages.ForwardCounters)


class DataPlane:
    """Owns the thread, the selector, all relays. `start`, then `submit`, finally `stop` (idempotent, joins)."""

    def __init__(
        self,
        notify: Callable[[messages.PlaneEvent], None],
        is_behind: Callable[[], bool] = lambda: False,
        *,
        max_connections: int = MAX_CONNECTIONS,
        times: Times = TIMES,
    ) -> None:
        """`is_behind`: whether the owner has much to take yet, so that what can wait or be replaced had better."""
        self.times = times
        self.notify = notify
        self._commands: deque[messages.Command] = deque()
        self._gate = threading.Lock()
        self._ended = False
        self._numbers = itertools.count(1)
        self._served: dict[str, _Served] = {}
        self._relays: dict[int, Relay] = {}
        self._loop = Loop("autoforward-data", self._each_turn, self._end)
        self._peers = ClosedClientPoller(self._loop, times.peer_check_interval_s)
        self._drains = Drains(self._loop, self._open_relays)
        self._limits = ConnectionLimits(max_connections)
        self._muxes = Agents(self._loop, notify, is_behind)
        self._accepting: list[tuple[str, socket.socket]] = []

    def __repr__(self) -> str:
        return f"<DataPlane {len(self._served)} forwards, {len(self._relays)} relays, {self._loop!r}>"

    # Called from other threads.

    def start(self) -> None:
        self._loop.start()

    def submit(self, command: messages.Command) -> None:
        """Queue a command; thread-safe, returns at once. After `stop` its `done` is resolved too."""
        with self._gate:
            ended = self._ended
            if not ended:
                self._commands.append(command)
        if ended:
            self._refuse(command)
        else:
            self._loop.wake()

    async def drain(self, forward_ids: frozenset[str], timeout_s: float) -> bool:
        """Wait until the connections of these forwards have ended; False when they were cut at the deadline."""
        done: Future[bool] = Future()
        self.submit(messages.Drain(forward_ids, timeout_s, done))
        return await asyncio.wrap_future(done)

    def stop(self) -> None:
        """End the loop and cut what is left. Idempotent. The session's watcher ends relays' processes."""
        self._loop.stop()

    @property
    def turns(self) -> int:
        """Turns of the loop so far: an idle data plane makes none."""
        return self._loop.turns

    # What relays call (`RelayOwner`, with `notify`), in the data plane's thread.

    def watch_peer(self, relay: Relay) -> None:
        """Poll this relay's client, which is not read: a reset does not show, a full close looks like a half-close."""
        self._peers.watch(relay)

    def relay_ended(self, relay: Relay, *, refused: bool, reason: str | None) -> None:
        self._peers.forget(relay)
        self._relays.pop(relay.relay_id, None)
        served = self._served.get(relay.forward_id)
        if served is not None:
            served.relays.pop(relay.relay_id, None)
            served.counters.active -= 1
            served.counters.refused += refused
            if not served.sockets and not served.relays:
                del self._served[relay.forward_id]
            # Report each refusal, and any change in how connections end.
            is_new, served.ended_last = refused or reason != served.ended_last, reason
        else:
            is_new = refused
        if is_new or not relay.routed:
            self.notify(messages.RelayEnded(relay.forward_id, relay.relay_id, refused, reason))
        self._drains.settle()

    # The loop.

    def _each_turn(self) -> None:
        # New clients come last: an agent that has ended in this turn gets none of them.
        for forward_id, listener in self._accepting:
            if not self._loop.call(self._accept, forward_id, listener):
                self._unwatch_listener(listener)
        self._accepting.clear()
        while self._commands:
            self._loop.call(self._obey, self._commands.popleft())

    def _end(self) -> None:
        for relay in list(self._relays.values()):
            relay.cut("the supervisor ends")
        with self._gate:
            self._ended = True
        while self._commands:
            self._refuse(self._commands.popleft())

    def _obey(self, command: messages.Command) -> None:
        match command:
            case messages.Serve(forward_id, sockets):
                served = self._served.setdefault(forward_id, _Served())
                if sockets and sockets[0].type == socket.SOCK_DGRAM:
                    self._serve_udp(served, sockets)
                    return
                for stale in set(served.sockets) - set(sockets):
                    self._unwatch_listener(stale)
                served.sockets = sockets
                for listener in sockets:
                    self._watch_listener(forward_id, listener)
            case messages.Route(forward_id):
                served = self._served.setdefault(forward_id, _Served())
                served.route = command
                for server in served.udp:
                    server.route(command)
            case messages.OpenOnMux():
                self._open_on_mux(command)
            case messages.Withdraw(forward_id, reset, done):
                self._withdraw(forward_id, reset)
                done.set_result(None)
            case messages.StreamReady(relay_id, stream, plan):
                # None: cut while the process was being started. The far end then ends the process.
                relay = self._relays.get(relay_id)
                ExecFarEnd(self._loop, self.notify, stream, plan, relay, self.times).start()
            case messages.StreamFailed(relay_id, reason):
                if (relay := self._relays.get(relay_id)) is not None:
                    relay.refuse(reason)
            case messages.ServerClosed(relay_id):
                if (relay := self._relays.get(relay_id)) is not None:
                    relay.server_closed()
            case messages.Drain():
                self._drains.begin(command)
            case messages.ReadCounters(done):
                done.set_result({key: copy(served.counters) for key, served in self._served.items()})
            case _:
                self._muxes.obey(command)

    def _refuse(self, command: messages.Command) -> None:
        """A command after the end: its caller must not wait for ever."""
        match command:
            case messages.Withdraw(_, _, done):
                done.set_result(None)
            case messages.Drain(_, _, drained):
                drained.set_result(True)
            case messages.ReadCounters(read):
                read.set_result({})
            case messages.StreamReady(stream=stream) | messages.MuxStart(stream=stream):
                stream.close()

    # Agents.

    def _open_on_mux(self, command: messages.OpenOnMux) -> None:
        relay, mux = self._relays.get(command.relay_id), self._muxes.get(command.session_id)
        if relay is None:
            return
        if mux is None:  # lost since control answered
            wanted = messages.StreamWanted(
                relay.forward_id, relay.relay_id, until_s=command.until_s, ipv6=relay.is_ipv6
            )
            self.notify(wanted)
            return
        mux.join(relay, command.transport, command.dials)

    def _serve_udp(self, served: _Served, sockets: tuple[socket.socket, ...]) -> None:
        for server in served.udp:
            server.close()
        served.sockets = sockets
        served.udp = tuple(UdpServer(self._loop, self._muxes.get, sock, served.counters) for sock in sockets)
        if served.route is not None:
            for server in served.udp:
                server.route(served.route)

    # Listeners.

    def _watch_listener(self, forward_id: str, listener: socket.socket) -> None:
        prepare_listener(listener)
        self._loop.watch(listener.fileno(), READ, lambda _events: self._accepting.append((forward_id, listener)))

    def _unwatch_listener(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.watch(listener.fileno(), 0, _ignore)

    def _accept(self, forward_id: str, listener: socket.socket) -> None:
        served = self._served.get(forward_id)
        if served is None or listener not in served.sockets:  # withdrawn in this turn
            return
        for _ in range(ACCEPTS_PER_TURN):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._pause_accepting(forward_id, listener, error)
                    return
                if error.errno == errno.EINVAL:  # no longer listening: a Withdraw follows
                    self._unwatch_listener(listener)
                    return
                continue  # the connection was aborted before it was accepted
            relay_id = next(self._numbers)
            if (reason := self._limits.refusal_reason(client.fileno(), len(served.relays))) is not None:
                client.close()  # a reset
                served.counters.total += 1
                served.counters.refused += 1
                if served.ended_last != reason:  # report each reason once
                    served.ended_last = reason
                    self.notify(messages.RelayEnded(forward_id, relay_id, True, reason))
                continue
            try:
                relay = Relay(self._loop, self, forward_id, relay_id, client, served.counters)
            except OSError:  # already closed by the client (reported here on macOS)
                client.close()
                continue
            served.relays[relay_id] = self._relays[relay_id] = relay
            served.counters.active += 1
            served.counters.total += 1
            route = served.route
            mux = self._muxes.get(route.session_id) if route is not None else None
            if route is not None and mux is not None:
                relay.routed = True
                if mux.join(relay, route.transport, route.dials_of(ipv6=relay.is_ipv6)):
                    relay.read_client()
                else:
                    self.watch_peer(relay)
                continue
            self.watch_peer(relay)
            self.notify(messages.StreamWanted(forward_id, relay_id, ipv6=relay.is_ipv6))

    def _pause_accepting(self, forward_id: str, listener: socket.socket, error: OSError) -> None:
        self._unwatch_listener(listener)
        reason = self._served[forward_id].ended_last = error.strerror or str(error)
        self.notify(messages.AcceptPaused(forward_id, reason))

        def resume() -> None:
            served = self._served.get(forward_id)
            if served is not None and listener in served.sockets:
                self._watch_listener(forward_id, listener)

        self._loop.call_later(self.times.accept_pause_s, resume)

    def _withdraw(self, forward_id: str, reset: bool) -> None:
        served = self._served.get(forward_id)
        if served is None:
            return
        for server in served.udp:
            server.close()
        served.udp = ()
        for listener in served.sockets:
            self._unwatch_listener(listener)
        served.sockets = ()
        if reset:
            for relay in list(served.relays.values()):
                relay.cut("the forward ended")
        if not served.relays:
            self._served.pop(forward_id, None)

    def _open_relays(self, forward_ids: Collection[str]) -> list[Relay]:
        return [relay for key in forward_ids if key in self._served for relay in self._served[key].relays.values()]


def _ignore(_events: int) -> None:
    """Handler of a listener that is no longer watched."""

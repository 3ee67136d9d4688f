"""UDP on the host: one flow per client address, each its own stream to the agent; datagrams stay whole.

UDP guarantees nothing, so nothing is queued for long: a datagram that cannot be sent now (no credit, no free flow, a
full socket) is dropped and counted. A flow ends after 60 s without a datagram either way; the agent has the same limit.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from autoforward.dataplane.messages import ForwardCounters, Route
from autoforward.dataplane.mux.exec_mux import Mux
from autoforward.dataplane.mux.stream import MuxStream
from autoforward.net.loop import Loop

MAX_DATAGRAM_BYTES = 65_507
DATAGRAMS_PER_TURN = 64
MAX_FLOWS = 1024
"""Clients of one forward at once; a new one replaces the one that was silent longest."""

IDLE_S = 60.0


class UdpFlow:
    """One client of one UDP forward: the UDP counterpart of `Relay`."""

    __slots__ = ("_channel", "_server", "active_s", "address")

    def __init__(self, server: UdpServer, address: tuple[str, int], now_s: float) -> None:
        self._server = server
        self._channel: MuxStream | None = None
        self.address = address
        self.active_s = now_s

    def __repr__(self) -> str:
        return f"<UdpFlow {self.address}>"

    def attach(self, channel: MuxStream) -> None:
        self._channel = channel

    def send(self, datagram: bytes) -> bool:
        """To the server in the container. False if it was dropped."""
        return self._channel is not None and self._channel.write_datagram(datagram)

    def end(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.abort()

    # Called by the stream.

    def data(self, datagram: bytes) -> None:
        self._server.answer(self, datagram)
        if self._channel is not None:
            self._channel.consumed(len(datagram))

    def drained(self) -> None:
        """No-op: nothing is queued here."""

    def server_eof(self) -> None:
        """The agent's idle timeout came first: end the flow."""
        self._server.forget(self)
        self.end()

    def server_ended(self) -> None:
        self._channel = None
        self._server.forget(self)

    def refuse(self, _reason: str) -> None:
        """A datagram cannot be refused; the next one tries again."""
        self.server_ended()

    def broken(self, _reason: str) -> None:
        self.server_ended()

    def server_reset(self, _reason: str) -> None:
        self.server_ended()


class UdpServer:
    """One bound UDP socket of a forward (owned by the caller)."""

    def __init__(
        self, loop: Loop, mux_of: Callable[[str], Mux | None], sock: socket.socket, counters: ForwardCounters
    ) -> None:
        self._loop = loop
        self._mux_of = mux_of
        self._socket = sock
        self._counters = counters
        self._flows: dict[tuple[str, int], UdpFlow] = {}
        self._route: Route | None = None
        self._sweeping = False
        loop.watch(sock.fileno(), selectors.EVENT_READ, self._on_ready)

    def __repr__(self) -> str:
        return f"<UdpServer fd={self._socket.fileno()}, {len(self._flows)} flows>"

    def route(self, route: Route) -> None:
        """Route new flows this way. Flows to another address end: their next datagram opens a new one."""
        if self._route is not None and self._route != route:
            self._end_flows()
        self._route = route

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), 0, self._on_ready)
        self._end_flows()

    def answer(self, flow: UdpFlow, datagram: bytes) -> None:
        flow.active_s = time.monotonic()
        try:
            self._socket.sendto(datagram, flow.address)
        except OSError:  # a full buffer, or a client that has gone: UDP loses datagrams
            return
        self._counters.bytes_out += len(datagram)

    def forget(self, flow: UdpFlow) -> None:
        if self._flows.pop(flow.address, None) is not None:
            self._counters.active -= 1

    def _on_ready(self, _events: int) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                datagram, address = self._socket.recvfrom(MAX_DATAGRAM_BYTES + 1)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for an earlier datagram
                continue
            now_s = time.monotonic()
            flow = self._flows.get(address) or self._open(address, now_s)
            if flow is not None:
                flow.active_s = now_s
                if flow.send(datagram):
                    self._counters.bytes_in += len(datagram)

    def _open(self, address: tuple[str, int], now_s: float) -> UdpFlow | None:
        route = self._route
        mux = self._mux_of(route.session_id) if route is not None else None
        if route is None or mux is None:
            self._counters.refused += 1
            return None
        if len(self._flows) >= MAX_FLOWS:
            oldest = min(self._flows.values(), key=lambda flow: flow.active_s)
            self.forget(oldest)
            oldest.end()
        flow = self._flows[address] = UdpFlow(self, address, now_s)
        dials = route.dials_of(ipv6=self._socket.family == socket.AF_INET6)
        flow.attach(mux.open(flow, "udp", dials))
        self._counters.active += 1
        self._counters.total += 1
        if not self._sweeping:
            self._sweeping = True
            self._loop.call_later(IDLE_S, self._sweep)
        return flow

    def _sweep(self) -> None:
        self._sweeping = False
        now_s = time.monotonic()
        for flow in list(self._flows.values()):
            if now_s - flow.active_s >= IDLE_S:
                self.forget(flow)
                flow.end()
        if self._flows:
            self._sweeping = True
            self._loop.call_later(IDLE_S / 4, self._sweep)

    def _end_flows(self) -> None:
        for flow in list(self._flows.values()):
            self.forget(flow)
            flow.end()

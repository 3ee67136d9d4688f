"""One client connection, joined to the far end of a lane.

The relay owns the client's socket, the far end owns the engine's side. After `abort` a far end makes no calls to its
relay. Half-close is kept: the client's FIN becomes `write_eof`, and the other direction continues. Data plane thread
only; no call blocks. A client that is not being read does not show a reset: the data plane polls it (`watch_peer`).
"""

from __future__ import annotations

import enum
import selectors
import socket
import sys
from typing import Protocol

from autoforward.core.transitions import Transitions
from autoforward.dataplane.far_end import FarEnd
from autoforward.dataplane.messages import ForwardCounters, StreamWanted
from autoforward.dataplane.splice import Splicer
from autoforward.dataplane.times import Times
from autoforward.net.loop import Loop
from autoforward.net.write_buffer import CLOSE_IN_ORDER, RECEIVE_BYTES, RESET_ON_CLOSE, Linger, WriteBuffer

HIGH_WATER_BYTES = 512 * 1024
"""What one direction of a relay buffers before its source is not read any more."""


class Stage(enum.Enum):
    """Where the bytes of a relay go."""

    OPENING = "opening"
    """Nowhere yet: the far end is being opened, and the client is not read."""
    STREAMING = "streaming"
    """Through the far end."""
    MOVING = "moving"
    """The far end is done; once the client has taken its bytes, the rest bypasses the far end."""
    SPLICED = "spliced"
    """From socket to socket, in the kernel. The far end stays for the ends."""
    OVER = "over"


STAGES = Transitions(
    {
        Stage.OPENING: (Stage.STREAMING, Stage.OVER),
        Stage.STREAMING: (Stage.OPENING, Stage.MOVING, Stage.OVER),
        Stage.MOVING: (Stage.SPLICED, Stage.OVER),
        Stage.SPLICED: (Stage.OVER,),
        Stage.OVER: (),
    }
)


class RelayOwner(Protocol):
    """What a relay needs of the data plane."""

    times: Times

    def notify(self, notice: StreamWanted) -> None: ...

    def watch_peer(self, relay: Relay) -> None:
        """Poll this relay's client: it is not read, so neither a reset nor a close would show."""

    def relay_ended(self, relay: Relay, *, refused: bool, reason: str | None) -> None:
        """The relay has ended; `reason` is None for a normal end."""


class Relay:
    """One client connection. It is read only once the far end is open, so that a refusal loses no bytes."""

    __slots__ = (
        "_channel",
        "_counters",
        "_ended_on_mux",
        "_far",
        "_fin_sent",
        "_flush_due",
        "_loop",
        "_mask",
        "_moved",
        "_outbox",
        "_owner",
        "_reading",
        "_server_ended",
        "_server_half_ended",
        "_splicer",
        "client",
        "client_ended",
        "forward_id",
        "relay_id",
        "routed",
        "stage",
    )

    def __init__(
        self,
        loop: Loop,
        owner: RelayOwner,
        forward_id: str,
        relay_id: int,
        client: socket.socket,
        counters: ForwardCounters,
    ) -> None:
        client.setblocking(False)
        if sys.platform != "linux":  # Linux inherits it from the listener
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client: socket.socket | None = client
        self.forward_id = forward_id
        self.relay_id = relay_id
        self._loop = loop
        self._owner = owner
        self._counters = counters
        self._channel: FarEnd | None = None
        self._outbox = WriteBuffer()
        self._reading = False
        self.client_ended = False
        """Whether the client's FIN was read: a half-close or a close."""
        self._server_ended = False
        self._server_half_ended = False
        self._fin_sent = False
        self._flush_due = False
        self._mask = 0
        self.routed = False
        """Its far end was opened without control, which then does not hear of a normal end either."""
        self.stage = Stage.OPENING
        self._moved = 0
        self._far: socket.socket | None = None
        self._ended_on_mux = False
        self._splicer: Splicer | None = None

    def __repr__(self) -> str:
        return f"<Relay {self.relay_id} of {self.forward_id} {self.stage.value}>"

    @property
    def is_over(self) -> bool:
        return self.stage is Stage.OVER

    @property
    def is_ipv6(self) -> bool:
        """Whether the client came by the host's IPv6 address."""
        return self.client is not None and self.client.family == socket.AF_INET6

    def attach(self, channel: FarEnd) -> None:
        """Set the far end, which will call `opened` or `refuse`."""
        self._channel = channel

    # Called by the far end.

    def opened(self) -> None:
        self._become(Stage.STREAMING)
        self._reading = True
        self._watch()

    def data(self, chunk: bytes) -> None:
        self._counters.bytes_out += len(chunk)
        self._moved += 1
        self._outbox.append(chunk)
        if not self._flush_due:
            self._flush_due = True
            self._loop.at_turn_end(self._flush_client)

    def drained(self) -> None:
        """The far end has taken everything written."""
        self._moved += 1
        if not self.client_ended and not self.is_over:
            self._reading = True
            self._watch()

    def server_eof(self) -> None:
        """The server has sent EOF but still reads: the client sees a FIN and may continue."""
        self._server_half_ended = True
        if self._splicer is not None:
            self._splicer.server_eof()
        else:
            self._flush_client()

    def server_ended(self) -> None:
        """The server's bytes are complete, and the far end is closed both ways."""
        self._channel = None
        self._server_ended = True
        if self._splicer is not None:
            self._splicer.server_eof()
            return
        self._flush_client()
        if self.stage is not Stage.STREAMING:
            return
        # Read on and discard: a client that sends before it reads would wait for this side.
        self._reading = not self.client_ended
        self._watch()

    def refuse(self, reason: str) -> None:
        """The server cannot be reached: reset the client, so that it does not see an empty success."""
        self._end_with_reset(refused=True, reason=reason)

    def start_over(self, *, retry: bool) -> None:
        """The far end ended before it began: request another one. Nothing of the client has been read.

        `retry`: it found no server, and there are other addresses to try.
        """
        if self.is_over:
            return
        self._become(Stage.OPENING)
        self._channel = None
        self.routed = False
        self.hold_client()
        self._owner.notify(StreamWanted(self.forward_id, self.relay_id, retry, ipv6=self.is_ipv6))

    def broken(self, reason: str) -> None:
        """The far end broke in mid-stream."""
        self._end_with_reset(refused=False, reason=reason)

    def server_reset(self, reason: str) -> None:
        """The server reset the connection: the client gets what came before, then a reset."""
        if self._splicer is not None:
            self._channel = None
            self._splicer.finish_then(lambda: self.broken(reason))
        else:
            self.broken(reason)

    # The direct path (`mux.handshake`): bytes leave the mux stream, which stays for the ends.

    def hold_client(self) -> None:
        """Stop reading the client until `moved`."""
        self._reading = False
        self._watch()

    def moved(self, far: socket.socket) -> None:
        """The mux stream has delivered everything; the rest comes from `far`, which the relay owns now."""
        self._become(Stage.MOVING)
        self._far = far
        self._ended_on_mux = self._server_half_ended
        self._flush_client()

    def _splice(self, client: socket.socket, far: socket.socket) -> None:
        """The client has taken the mux stream's bytes: from here on the kernel moves them."""
        self._far = None
        self._loop.watch(client.fileno(), 0, self._on_client)
        self._mask = 0
        if self._ended_on_mux:
            self._half_finish()
        try:
            self._splicer = Splicer(
                self._loop, self, client, far, client_ended=self.client_ended, server_ended=self._ended_on_mux
            )
        except OSError as error:
            far.close()
            self.cut(f"the direct connection could not be used: {error.strerror}")
            return
        self._become(Stage.SPLICED)
        self._splicer.start()
        if self._server_half_ended or self._server_ended:
            self._splicer.server_eof()

    # Called by the splicer.

    def up_moved(self, size: int) -> None:
        self._counters.bytes_in += size
        self._moved += 1

    def down_moved(self, size: int) -> None:
        self._counters.bytes_out += size
        self._moved += 1

    def client_said_all(self) -> None:
        self.client_ended = True
        if self._channel is not None:
            self._channel.write_eof()
        if self._fin_sent and not self.is_over:
            self._finish()

    def server_said_all(self) -> None:
        if self.client_ended:
            self._finish()
        else:
            self._half_finish()

    def stopped_reading(self) -> None:
        self._owner.watch_peer(self)

    # Called by the data plane.

    def server_closed(self) -> None:
        if self._channel is not None:
            self._channel.server_closed()

    def cut(self, reason: str) -> None:
        self._end_with_reset(refused=False, reason=reason)

    @property
    def is_reading(self) -> bool:
        """Whether the client's socket is watched, so that its end is noticed."""
        return (self._reading if self._splicer is None else self._splicer.reads_client) and not self.is_over

    def client_has_gone(self) -> None:
        """The client has closed its socket: deliver what it sent, then end the far end, whatever the server does."""
        self._wait_for_progress(0.0)

    def _wait_for_progress(self, stalled_s: float) -> None:
        progress = self._progress()

        def check() -> None:
            if self.is_over:
                return
            if self._progress() != progress:
                self._wait_for_progress(0.0)
            elif progress[1] and stalled_s < self._owner.times.stalled_s:
                self._wait_for_progress(stalled_s + self._owner.times.gone_grace_s)
            else:
                self.cut("the client has gone")

        self._loop.call_later(self._owner.times.gone_grace_s, check)

    def _progress(self) -> tuple[int, int]:
        """A value that changes when bytes move, and how many bytes wait for the server."""
        if self._splicer is not None:
            return self._moved, self._splicer.pending
        return self._moved, self._channel.pending if self._channel is not None else 0

    # The client's socket.

    def _watch(self) -> None:
        if self.client is None:
            return
        events = 0
        if self._reading:
            events = selectors.EVENT_READ
        else:
            self._owner.watch_peer(self)
        if self._outbox.size:
            events |= selectors.EVENT_WRITE
        if events != self._mask:
            self._mask = events
            self._loop.watch(self.client.fileno(), events, self._on_client)

    def _on_client(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self.read_client()
        if events & selectors.EVENT_WRITE and self.client is not None:
            self._flush_client()

    def read_client(self) -> None:
        """Also at once when it is open: most clients speak first, and their first bytes are there before the loop would look."""
        if self.client is None:
            return
        try:
            data = self.client.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.cut(f"the client broke off: {error.strerror}")
            return
        if not data:
            self.client_ended = True
            self._reading = False
            self._watch()
            if self._channel is not None:
                self._channel.write_eof()
            return
        if self._channel is None:
            return
        self._counters.bytes_in += len(data)
        self._moved += 1
        self._channel.write(data)
        if self._channel is not None and self._channel.pending > HIGH_WATER_BYTES:
            self._reading = False
            self._watch()

    def _flush_client(self) -> None:
        self._flush_due = False
        if self.client is None or self._splicer is not None:  # called after the bytes moved
            return
        ended = self._server_half_ended or self._server_ended
        try:
            sent = self._outbox.flush_gathered(
                self.client, fin_follows=ended and not self._fin_sent and self._far is None
            )
        except OSError as error:
            self.cut(f"the client broke off: {error.strerror}")
            return
        self._moved += bool(sent)
        if sent and self._channel is not None:
            self._channel.consumed(sent)
        if not self._outbox.size:
            if self._channel is not None:
                self._channel.resume()
            if self._far is not None:
                self._splice(self.client, self._far)
                return
            if self._server_half_ended:
                self._half_finish()
            if self._server_ended:
                self._finish()
                return
        elif self._channel is not None and self._outbox.size > HIGH_WATER_BYTES:
            self._channel.pause()
        self._watch()

    def _become(self, stage: Stage) -> None:
        self.stage = STAGES.to(self.stage, stage)

    # Ends.

    def _half_finish(self) -> None:
        """The client has everything: send it FIN, and continue reading."""
        if self.client is None or self._server_ended or self._fin_sent:
            return
        self._fin_sent = True
        try:
            _say_end(self.client)
        except OSError as error:
            self.cut(f"the client broke off: {error.strerror}")

    def _finish(self) -> None:
        """The server closed and the client has everything: FIN to the client, and a moment for its last bytes."""
        client = self._release(refused=False, reason=None)
        if client is None:
            return
        try:
            if not self._fin_sent:
                _say_end(client)
        except OSError:  # the client has closed meanwhile
            client.close()
            return
        if self.client_ended:
            client.close()
        else:
            Linger(self._loop, client, self._owner.times.linger_s)

    def _end_with_reset(self, *, refused: bool, reason: str) -> None:
        channel, self._channel = self._channel, None
        client = self._release(refused=refused, reason=reason)
        if client is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.close()
        if channel is not None:
            channel.abort()

    def _release(self, *, refused: bool, reason: str | None) -> socket.socket | None:
        """Take the client's socket out of the relay and report its end to the plane; None the second time."""
        client, self.client = self.client, None
        self._become(Stage.OVER)
        self._outbox.clear()
        if self._splicer is not None:
            self._splicer.close()
        if self._far is not None:
            self._far.close()
        if client is not None:
            self._loop.watch(client.fileno(), 0, self._on_client)
            self._owner.relay_ended(self, refused=refused, reason=reason)
        return client


def _say_end(client: socket.socket) -> None:
    """FIN to a client that has everything. After it, closing its socket is no longer a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_IN_ORDER)
    client.shutdown(socket.SHUT_WR)

"""One client connection on the agent's mux or trunk: credit both ways, its place in the queue, its two ends.

Implements `far_end.FarEnd` for the relay. Data plane thread only.
"""

from __future__ import annotations

import enum
import socket
from collections import deque
from typing import Protocol, runtime_checkable

from autoforward.agent_protocol import decoder, frames
from autoforward.core.budget import DATAGRAM_COST
from autoforward.core.errors import ProtocolError
from autoforward.core.transitions import Transitions
from autoforward.dataplane.mux.handshake import DirectConnector
from autoforward.net.write_buffer import append_joined

WINDOW_BYTES = 1024 * 1024
"""Bytes that the agent may send on one stream before it needs credit: enough for bulk at a busy loop's latency."""

CREDIT_STEP_BYTES = WINDOW_BYTES // 4
"""Credit is returned in steps of this size: a frame per small chunk would double the traffic."""

BULK_BYTES = 256 * 1024
"""A stream that has moved this much one way gets a direct connection. Checked when credit is returned, at most in steps
of this size, so that small streams count nothing.
"""

TURN_BYTES = frames.MAX_PAYLOAD
"""Bytes that one stream may send in a turn while others wait: one frame."""


class Move(enum.Enum):
    """The state of a stream's move to a direct connection (handshake.py)."""

    NOT_ASKED = "not asked"
    ASKED = "asked"
    """A connection was requested."""
    CONNECTED = "connected"
    """It is connected; queued bytes go out on the mux first."""
    SENT = "sent"
    """MOVE was sent: nothing more goes out on the mux."""
    DONE = "done"
    """MOVE has also arrived: the owner has the connection."""
    OVER = "over"
    """The stream has ended and releases its connection."""


MOVES = Transitions(
    {
        Move.NOT_ASKED: (Move.ASKED, Move.OVER),
        Move.ASKED: (Move.CONNECTED, Move.OVER),
        Move.CONNECTED: (Move.SENT, Move.OVER),
        Move.SENT: (Move.DONE, Move.OVER),
        Move.DONE: (Move.OVER,),
        Move.OVER: (),
    }
)


class StreamOwner(Protocol):
    """The owner of a stream: a `Relay`, or a UDP flow."""

    def data(self, chunk: bytes) -> None: ...
    def drained(self) -> None: ...
    def server_eof(self) -> None: ...
    def server_ended(self) -> None: ...
    def refuse(self, reason: str) -> None: ...
    def broken(self, reason: str) -> None: ...
    def server_reset(self, reason: str) -> None: ...


@runtime_checkable
class PatientOwner(StreamOwner, Protocol):
    """An owner whose client waits: while none of its bytes are in flight, another far end will do."""

    @property
    def is_over(self) -> bool: ...
    def attach(self, channel: MuxStream) -> None: ...
    def opened(self) -> None: ...
    def start_over(self, *, retry: bool) -> None: ...


@runtime_checkable
class MovableOwner(StreamOwner, Protocol):
    """An owner that can continue on a direct connection."""

    def hold_client(self) -> None: ...
    def moved(self, far: socket.socket) -> None: ...


class StreamSender(Protocol):
    """What a stream needs of its multiplexer."""

    @property
    def direct(self) -> DirectConnector | None:
        """Gives bulk streams a connection of their own; None: no direct path."""

    @property
    def is_backlogged(self) -> bool:
        """Whether so much output is queued that no stream may add to it."""

    def send(self, frame: bytes | memoryview) -> None: ...

    def send_data(self, number: int, payload: bytes | memoryview) -> None: ...

    def queue_turn(self, channel: MuxStream) -> None:
        """Let this stream send after the others' turns."""

    def forget(self, number: int) -> None:
        """This stream has ended."""


class MuxStream:
    """Implements `far_end.FarEnd`. Usable at once: bytes sent before the answer go to the server or are dropped."""

    __slots__ = (
        "_begun",
        "_consumed",
        "_credit",
        "_datagrams",
        "_eof_sent",
        "_far",
        "_move",
        "_mux",
        "_parts",
        "_queue",
        "_queued",
        "_ready",
        "_received",
        "_relay",
        "_returned",
        "_server_ended",
        "_write_ended",
        "extra_cost",
        "number",
    )

    def __init__(
        self, mux: StreamSender, number: int, relay: StreamOwner, credit: int, *, datagrams: bool = False
    ) -> None:
        self._mux = mux
        self.number = number
        self._relay: StreamOwner | None = relay
        self._credit = credit
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._ready = False
        self._received = 0
        self._consumed = 0
        self._write_ended = self._eof_sent = self._server_ended = False
        self._begun = datagrams
        """Whether the agent answered or client bytes were sent: then the client must see a loss."""
        self._datagrams = datagrams
        self.extra_cost = DATAGRAM_COST if datagrams else 0
        """The cost of each DATA, in frames."""
        self._parts: list[bytes] = []
        # The direct path: the returned credit, and the connection.
        self._returned = 0
        self._move = Move.NOT_ASKED
        self._far: socket.socket | None = None

    def __repr__(self) -> str:
        return f"<MuxStream {self.number} of {self._relay}, move {self._move.value}>"

    # Called by the relay.

    @property
    def pending(self) -> int:
        return self._queued

    def write(self, data: bytes) -> None:
        self._begun = True
        if not self._queue and len(data) <= self._credit and len(data) <= TURN_BYTES and not self._mux.is_backlogged:
            self._credit -= len(data)
            self._mux.send_data(self.number, data)
            return
        append_joined(self._queue, data)
        self._queued += len(data)
        self._become_ready()

    def write_datagram(self, datagram: bytes) -> bool:
        """Send one datagram in one frame, now or not at all."""
        if len(datagram) > self._credit or self._mux.is_backlogged:
            return False
        self._credit -= len(datagram)
        self._mux.send_data(self.number, datagram)
        return True

    def write_eof(self) -> None:
        if self._write_ended:
            return
        self._write_ended = self._begun = True
        if not self._queue:
            self._send_eof()

    def consumed(self, count: int) -> None:
        """The client has taken `count` bytes: the agent may send as many more."""
        self._consumed += count
        if self._consumed >= CREDIT_STEP_BYTES and not self._server_ended:
            self._mux.send(decoder.encode_credit(self.number, self._consumed))
            self._received -= self._consumed
            self._consumed = 0
            self._is_bulk()

    def pause(self) -> None:
        """No-op: without `consumed` there is no new credit."""

    def resume(self) -> None:
        pass

    def server_closed(self) -> None:
        """No-op: the agent reports it."""

    def abort(self) -> None:
        if self._relay is not None:
            self._relay = None
            self._queue.clear()
            self._mux.send(decoder.encode_reset(self.number, 0))
            self._mux.forget(self.number)
            self._close_direct()

    # Called by the mux.

    def take_turn(self) -> bool:
        """Send up to one turn's bytes; True if more may go."""
        budget = min(TURN_BYTES, self._credit)
        while self._queue and budget > 0:
            chunk = self._queue[0]
            if len(chunk) <= budget:
                part = self._queue.popleft()
            else:
                view = memoryview(chunk)  # slices of a view copy nothing
                part, self._queue[0] = view[:budget], view[budget:]
            self._mux.send_data(self.number, part)
            budget -= len(part)
            self._credit -= len(part)
            self._queued -= len(part)
        self._ready = bool(self._queue) and self._credit > 0
        if not self._queue:
            if self._write_ended and not self._eof_sent:
                self._send_eof()
            elif self._relay is not None and self._move in (Move.NOT_ASKED, Move.ASKED):
                self._relay.drained()
            self._say_move()
        return self._ready

    def answered(self) -> None:
        """The agent has connected to the server."""
        self._begun = True

    def take_credit(self, count: int) -> None:
        self._credit += count
        self._returned += count
        if self._returned >= BULK_BYTES:
            self._is_bulk()
        if self._credit > frames.MAX_CREDIT:
            raise ProtocolError("the agent gave more credit than there can be bytes")
        if self._queue:
            self._become_ready()

    def take_data(self, payload: bytes, *, last: bool) -> None:
        if self._server_ended or not (payload or self._datagrams):
            raise ProtocolError("the agent sent data after its end, or none")
        self._received += len(payload)
        if self._received > WINDOW_BYTES:
            raise ProtocolError("the agent sent more than it had credit for")
        if self._datagrams:
            self._parts.append(payload)
            if not last:
                return
            payload, self._parts = b"".join(self._parts), []
        self._begun = True
        if self._relay is not None:
            self._relay.data(payload)

    def take_eof(self) -> None:
        if self._server_ended:
            raise ProtocolError("the agent ended a stream twice")
        self._server_ended = self._begun = True
        if self._eof_sent:
            self._finish()
        elif self._relay is not None:
            self._relay.server_eof()

    def refused(self, number: int) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.refuse(errno_text(number))

    def reset(self, reason: str) -> None:
        """The server reset the connection; deliver what it sent before."""
        relay, self._relay = self._relay, None
        self._queue.clear()
        self._close_direct()
        if relay is not None:
            relay.server_reset(reason)

    def broke(self, reason: str) -> None:
        relay, self._relay = self._relay, None
        self._queue.clear()
        self._close_direct()
        if not self._begun and isinstance(relay, PatientOwner):
            relay.start_over(retry=False)
        elif relay is not None:
            relay.broken(reason)

    # The direct path: once connected, queued bytes go out, MOVE goes both ways, then the relay gets the connection.

    def announce(self, token: bytes) -> bytes:
        return decoder.encode_direct(self.number, token)

    def direct_ready(self, far: socket.socket) -> None:
        if not isinstance(self._relay, MovableOwner) or (self._server_ended and self._write_ended):
            far.close()
            return
        self._far = far
        self._advance(Move.CONNECTED)
        self._relay.hold_client()
        if not self._queue:
            self._say_move()

    def take_move(self) -> None:
        """Everything that the agent sent on the mux has arrived. It moves second, so the connection exists."""
        far, self._far = self._far, None
        if self._move is not Move.SENT or far is None:
            raise ProtocolError("the agent moved a stream that was not to move")
        self._advance(Move.DONE)
        self._received = WINDOW_BYTES  # no more bytes on the mux
        if isinstance(self._relay, MovableOwner):
            self._relay.moved(far)

    def _advance(self, move: Move) -> None:
        self._move = MOVES.to(self._move, move)

    def _is_bulk(self) -> None:
        may_ask = self._move is Move.NOT_ASKED and not self._datagrams
        if may_ask and self._mux.direct is not None and self._mux.direct.want(self):
            self._advance(Move.ASKED)

    def _say_move(self) -> None:
        if self._move is Move.CONNECTED:
            self._advance(Move.SENT)
            self._mux.send(decoder.encode_move(self.number))

    def _close_direct(self) -> None:
        asked = self._move not in (Move.NOT_ASKED, Move.OVER)
        self._advance(Move.OVER)
        if asked and self._mux.direct is not None:
            self._mux.direct.release(self)
        far, self._far = self._far, None
        if far is not None:
            far.close()

    def _send_eof(self) -> None:
        self._eof_sent = True
        self._mux.send(decoder.encode_eof(self.number))
        if self._server_ended:
            self._finish()

    def _finish(self) -> None:
        """Both directions have ended normally."""
        self._mux.forget(self.number)
        self._close_direct()
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.server_ended()

    def _become_ready(self) -> None:
        if not self._ready and self._credit > 0:
            self._ready = True
            self._mux.queue_turn(self)


_LINUX_ERRORS = {
    2: "no such host",
    24: "too many connections at once",
    101: "network unreachable",
    104: "connection reset by peer",
    105: "no buffer space left in the agent",
    110: "connection timed out",
    111: "connection refused",
    113: "no route to host",
}
"""The agent uses Linux error numbers, whatever this host's are."""


def errno_text(number: int) -> str:
    return _LINUX_ERRORS.get(number, f"error {number}")

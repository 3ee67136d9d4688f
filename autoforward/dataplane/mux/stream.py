"""One client connection on the agent's mux or trunk: its credit both ways, its place in the queue, its two ends.

See `far_end.FarEnd` for the contract towards the relay. All calls are made in the data plane's thread.
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
"""What the agent may send on one stream before we give more credit: enough for bulk at the latency of a busy loop."""

CREDIT_STEP_BYTES = WINDOW_BYTES // 4
"""Credit is given back in steps of this size: a frame for each small chunk would double the traffic."""

BULK_BYTES = 256 * 1024
"""A stream that has moved this much one way is worth a connection of its own. Looked at when credit goes back, which is
in steps of this size at most: nothing is counted for the small ones."""

TURN_BYTES = frames.MAX_PAYLOAD
"""What one stream may put into a turn while others wait: one frame."""


class Move(enum.Enum):
    """How far a stream is on its way to a direct connection (handshake.py)."""

    NOT_ASKED = "not asked"
    ASKED = "asked"
    """The agent was asked for a connection."""
    CONNECTED = "connected"
    """It is there; what is queued goes out on the mux first."""
    SENT = "sent"
    """MOVE was sent: nothing more goes out on the mux."""
    DONE = "done"
    """MOVE came too: the owner has the connection."""
    OVER = "over"
    """The stream has ended, and lets go of its connection."""


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
    """One whose client waits: as long as none of its bytes are on their way, another far end will do."""

    @property
    def is_over(self) -> bool: ...
    def attach(self, channel: MuxStream) -> None: ...
    def opened(self) -> None: ...
    def start_over(self, *, retry: bool) -> None: ...


@runtime_checkable
class MovableOwner(StreamOwner, Protocol):
    """One that can go on over a direct connection."""

    def hold_client(self) -> None: ...
    def moved(self, far: socket.socket) -> None: ...


class StreamSender(Protocol):
    """What a stream asks of the multiplexer that carries it."""

    @property
    def direct(self) -> DirectConnector | None:
        """Where bulk may move to a connection of its own; None: nowhere."""

    @property
    def is_backlogged(self) -> bool:
        """Whether so much waits to be sent that no stream may add to it."""

    def send(self, frame: bytes | memoryview) -> None: ...

    def send_data(self, number: int, payload: bytes | memoryview) -> None: ...

    def queue_turn(self, channel: MuxStream) -> None:
        """Let this stream send once others had their turn."""

    def forget(self, number: int) -> None:
        """This stream is over."""


class MuxStream:
    """See `far_end.FarEnd` for the contract. Usable at once: what is sent before the answer goes to the server or is dropped."""

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
        """Whether there was an answer, or something of the client's was sent: then a loss is the client's to know."""
        self._datagrams = datagrams
        self.extra_cost = DATAGRAM_COST if datagrams else 0
        """Of each DATA, in frames."""
        self._parts: list[bytes] = []
        # The direct path: the credit that came back, and the connection.
        self._returned = 0
        self._move = Move.NOT_ASKED
        self._far: socket.socket | None = None

    def __repr__(self) -> str:
        return f"<MuxStream {self.number} of {self._relay}, move {self._move.value}>"

    # What the relay calls.

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
        """One datagram in one frame, now or not at all."""
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
        """The client has taken this many bytes: the agent may send as many more."""
        self._consumed += count
        if self._consumed >= CREDIT_STEP_BYTES and not self._server_ended:
            self._mux.send(decoder.encode_credit(self.number, self._consumed))
            self._received -= self._consumed
            self._consumed = 0
            self._is_bulk()

    def pause(self) -> None:
        """Nothing to do: without `consumed` there is no new credit."""

    def resume(self) -> None:
        pass

    def server_closed(self) -> None:
        """The agent says so itself."""

    def abort(self) -> None:
        if self._relay is not None:
            self._relay = None
            self._queue.clear()
            self._mux.send(decoder.encode_reset(self.number, 0))
            self._mux.forget(self.number)
            self._let_direct_go()

    # What the mux calls.

    def take_turn(self) -> bool:
        """Put up to one turn's bytes into the mux; True when there is more that may go."""
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
            relay.refuse(in_words(number))

    def reset(self, reason: str) -> None:
        """The server broke off; what it said before is to arrive."""
        relay, self._relay = self._relay, None
        self._queue.clear()
        self._let_direct_go()
        if relay is not None:
            relay.server_reset(reason)

    def broke(self, reason: str) -> None:
        relay, self._relay = self._relay, None
        self._queue.clear()
        self._let_direct_go()
        if not self._begun and isinstance(relay, PatientOwner):
            relay.start_over(retry=False)
        elif relay is not None:
            relay.broken(reason)

    # The direct path: once the connection is there, what is queued goes out, MOVE goes both ways, then the relay has it.

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
        """All that the agent had on the mux has arrived. It was told to go first, so the connection is there."""
        far, self._far = self._far, None
        if self._move is not Move.SENT or far is None:
            raise ProtocolError("the agent moved a stream that was not to move")
        self._advance(Move.DONE)
        self._received = WINDOW_BYTES  # not a byte more of it on the mux
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

    def _let_direct_go(self) -> None:
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
        """Both directions have ended in order."""
        self._mux.forget(self.number)
        self._let_direct_go()
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
"""The agent's numbers are those of Linux, whatever this host's are."""


def in_words(number: int) -> str:
    return _LINUX_ERRORS.get(number, f"error {number}")

"""The trunk: a TCP connection to the agent, past the engine, that carries many streams.

It opens like a direct connection (`handshake`): to the container's own address, with a token sent over the exec stream,
and a proof from both sides. Then frames go both ways as on the exec stream, with two processes less in each direction.
Streams stay where they were opened. Opens are signed: someone who can change that network's traffic must not get
connections to the container's servers. When the trunk breaks, its connections break, new ones use the exec stream, and
soon there is another trunk.
"""

from __future__ import annotations

import hmac
import itertools
import logging
import socket
import time
from typing import Protocol

from autoforward.agent_protocol import decoder, frames
from autoforward.agent_protocol.frames import MAX_SIGNED_PAYLOAD, TAG_SIZE
from autoforward.agent_protocol.payloads import FROM_TRUNK
from autoforward.core.errors import ProtocolError
from autoforward.dataplane.mux.handshake import DirectConnector
from autoforward.dataplane.mux.multiplexer import Multiplexer
from autoforward.dataplane.mux.stream import MuxStream, StreamOwner
from autoforward.net.loop import Loop, Timer

log = logging.getLogger(__name__)

RECEIVE_BYTES = 256 * 1024
UNANSWERED_S = 1.0
"""Seconds without a frame, with something sent since, after which the agent is pinged."""

SEEK_AGAIN_S = 3.0
"""From one request for a trunk to the next; its outcome is known by then (`HANDSHAKE_TIMEOUT_S`)."""

GRACE_S = 1.0
"""For the pong to arrive on the trunk after it arrived on the exec stream, the longer path."""


class Opener(Protocol):
    """The mux, as its trunk uses it."""

    @property
    def window(self) -> int: ...

    def send(self, frame: bytes | memoryview) -> None: ...
    def doubt(self) -> None: ...


class TrunkManager:
    """The trunk of one mux: requested with the first connection, checked with each ping, replaced when it broke."""

    number = 0
    """Its key in the connector's table: streams begin at 1."""

    def __init__(self, loop: Loop, mux: Opener, gate: DirectConnector) -> None:
        self._loop = loop
        self._mux = mux
        self._gate = gate
        self._trunk: Trunk | None = None
        self._sought = self._waits = self._is_barred = self._wanted = False
        self._sought_s = 0.0
        self._token = b""
        self._questions = itertools.count(1)
        self._question = b""
        self._asked_s = 0.0
        self._judgement: Timer | None = None

    def __repr__(self) -> str:
        return f"<TrunkManager {self._trunk}>"

    def get(self) -> Trunk | None:
        """The trunk, if new streams may use it. Otherwise it is requested, once per `maintain`."""
        if self._gate.address is None:
            self._wanted = True
            return None
        if self._trunk is None and not self._sought:
            self._sought = True
            self._sought_s = time.monotonic()
            self._waits = self._gate.want(self)
        return self._trunk

    @property
    def is_idle(self) -> bool:
        return self._trunk is None or self._trunk.is_idle

    def has(self, number: int) -> bool:
        return self._trunk is not None and self._trunk.has(number)

    def allow(self, address: str | None) -> None:
        """Where the container can be reached from now on; without an address the existing trunk takes no new streams."""
        self._gate.allow(address)
        if address is None:
            self._wanted = self._wanted or self._waits
            self._resume_waiting()
            self._sought = self._is_barred
        elif self._wanted:
            self._wanted = False
            self.get()

    def maintain(self) -> None:
        """Called with each ping of the mux."""
        if self._trunk is None:
            if time.monotonic() - self._sought_s >= SEEK_AGAIN_S:
                self._resume_waiting()
                self._sought = self._is_barred
        elif self._gate.address is None and self._trunk.has_said_all:
            log.info("the trunk is ended: the direct path is off")
            self._end()
        else:
            self.check()

    def check(self) -> None:
        """Ping the agent on both paths: a trunk without the answer leads nowhere.

        A busy agent or a paused container is no loss: then the exec stream is silent too.
        """
        if self._trunk is not None and not self._question:
            self._asked_s = time.monotonic()
            self._question = b"trunk" + next(self._questions).to_bytes(8, "big")[-3:]
            self._trunk.send(decoder.encode_ping(self._question))
            self._mux.send(decoder.encode_ping(self._question))

    def pong(self, payload: bytes) -> None:
        """A pong has arrived on the exec stream."""
        if payload == self._question and self._judgement is None:  # once, however often the agent sends it
            self._judgement = self._loop.call_later(GRACE_S, self._judge)

    def _judge(self) -> None:
        self._question = b""
        self._judgement = None
        if self._trunk is not None:
            self._trunk.catch_up()  # a busy loop may not have read it yet
        if self._trunk is not None and self._trunk.heard_s < self._asked_s:
            self.lost("it leads nowhere any more", agent_lives=True)

    def lost(self, reason: str, *, for_good: bool = False, agent_lives: bool = False) -> None:
        """The trunk broke: tell the agent in case it does not know. `for_good`: no other trunk with this agent.

        Unless the agent has just sent something on the exec stream (`agent_lives`), it may be gone too.
        """
        self._is_barred = self._is_barred or for_good
        if self._trunk is not None:
            log.info("the trunk is lost: %s", reason)
            if not agent_lives:
                self._mux.doubt()
            self._end()

    def _end(self) -> None:
        self.close()
        self._mux.send(decoder.encode_trunk(b""))

    def close(self) -> None:
        trunk, self._trunk = self._trunk, None
        if trunk is not None:
            trunk.close()

    # Called by the connector.

    def announce(self, token: bytes) -> bytes:
        self._token = token
        return decoder.encode_trunk(token)

    def direct_ready(self, far: socket.socket) -> None:
        self._resume_waiting()
        self._trunk = Trunk(self._loop, self, far, self._gate, self._gate.trunk_key(self._token), self._mux.window)

    def _resume_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._gate.release(self)


class Trunk(Multiplexer[socket.socket]):
    """An authenticated trunk. Owns the socket."""

    def __init__(
        self, loop: Loop, trunks: TrunkManager, sock: socket.socket, direct: DirectConnector, key: bytes, window: int
    ) -> None:
        super().__init__(loop, sock, decoder.Decoder(FROM_TRUNK, greeted=True), direct)
        self._trunks = trunks
        self._hmac = hmac.new(key, digestmod="sha256")
        self._window = window
        self._last_number = 0
        self._timer: Timer | None = None
        self._takers[frames.Pong] = self._pass_over
        self._start_watching()

    def __repr__(self) -> str:
        return f"<Trunk fd={self._stream.fileno()}, {len(self._channels)} channels>"

    @property
    def heard_s(self) -> float:
        """When the last frame arrived, on the monotonic clock."""
        return self._heard_s

    def has(self, number: int) -> bool:
        return number in self._channels

    @property
    def has_said_all(self) -> bool:
        """Whether it has no streams, and the agent has received the ends of the former ones."""
        return self.is_idle and not self._out and not self._unanswered

    def open(self, number: int, relay: StreamOwner, payload: bytes, *, datagrams: bool) -> MuxStream | None:
        """Open a stream; None if the payload is too long to be signed, or the stream numbers wrapped around."""
        if len(payload) > MAX_SIGNED_PAYLOAD or number <= self._last_number:
            return None
        self._last_number = number
        signature = self._hmac.copy()
        signature.update(number.to_bytes(4, "big") + payload)
        channel = self._add(number, relay, self._window, datagrams=datagrams)
        self.send(decoder.encode_signed_open(number, signature.digest()[:TAG_SIZE], payload))
        if self._timer is None:
            self._timer = self._loop.call_later(UNANSWERED_S, self._check_activity)
        return channel

    def _check_activity(self) -> None:
        """While there are connections."""
        self._timer = None
        if self.is_idle:
            return
        if self._unanswered and time.monotonic() - self._heard_s >= UNANSWERED_S:
            self._trunks.check()
        self._timer = self._loop.call_later(UNANSWERED_S, self._check_activity)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()

    def catch_up(self) -> None:
        """Read what has arrived, unless reading is held."""
        if self._is_held:
            self._heard_s = time.monotonic()
        else:
            self._read()

    def _read(self) -> None:
        try:
            data = b"" if self._decoder.has_more else self._stream.recv(RECEIVE_BYTES)
            if not data and not self._decoder.has_more:
                self._lose("the agent ended it")
                return
            self._unanswered = False
            self._take_turn(data)
        except BlockingIOError:
            return
        except ProtocolError as error:
            # The agent's, or from an attacker on that network: neither gets a second one.
            self._trunks.lost(str(error), for_good=True)
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _lose(self, reason: str) -> None:
        self._trunks.lost(reason)

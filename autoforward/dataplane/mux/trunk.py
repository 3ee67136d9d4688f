"""The trunk: a TCP connection of our own to the agent that carries many streams, past the engine.

It is opened as a direct connection is (`handshake`): to the container's own address, with a token that the agent got
over the exec stream, and a proof from both sides. Then frames go both ways as on the exec stream, two processes
less in each direction. Streams stay where they were opened. Opening is signed: who can change what is said on that
network must not get connections to what listens in the container. When the trunk breaks, its connections are broken off,
new ones go over the exec stream, and after a moment there is another.
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
"""After asking for a trunk, until it may be asked for again: what came of it is known by then (`HANDSHAKE_TIMEOUT_S`)."""

GRACE_S = 1.0
"""For the answer to come over the trunk, too, after it came over the exec stream, which is the longer way."""


class Opener(Protocol):
    """The mux, as far as its trunk goes."""

    @property
    def window(self) -> int: ...

    def send(self, frame: bytes | memoryview) -> None: ...
    def doubt(self) -> None: ...


class TrunkManager:
    """The trunk of one mux: asked for with the first connection, looked after with each ping, replaced when it broke."""

    number = 0
    """In the connector's table: streams begin at 1."""

    def __init__(self, loop: Loop, mux: Opener, gate: DirectConnector) -> None:
        self._loop = loop
        self._mux = mux
        self._gate = gate
        self._trunk: Trunk | None = None
        self._sought = self._waits = self._barred = self._wanted = False
        self._sought_s = 0.0
        self._token = b""
        self._questions = itertools.count(1)
        self._question = b""
        self._asked_s = 0.0
        self._judgement: Timer | None = None

    def __repr__(self) -> str:
        return f"<TrunkManager {self._trunk}>"

    def get(self) -> Trunk | None:
        """The trunk, if new streams may go over it. Where there is none it is asked for, once from one `maintain` on."""
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
        """Where the container may be reached from now on; without an address nothing new goes over the trunk that there is."""
        self._gate.allow(address)
        if address is None:
            self._wanted = self._wanted or self._waits
            self._let_go()
            self._sought = self._barred
        elif self._wanted:
            self._wanted = False
            self.get()

    def maintain(self) -> None:
        """With each ping of the mux."""
        if self._trunk is None:
            if time.monotonic() - self._sought_s >= SEEK_AGAIN_S:
                self._let_go()
                self._sought = self._barred
        elif self._gate.address is None and self._trunk.has_said_all:
            log.info("the trunk is ended: the direct path is off")
            self._end()
        else:
            self.check()

    def check(self) -> None:
        """Ping the agent, on both paths at once: a trunk that the answer does not come over leads nowhere.

        However busy the agent is or if its container is paused: then the exec stream is silent as well.
        """
        if self._trunk is not None and not self._question:
            self._asked_s = time.monotonic()
            self._question = b"trunk" + next(self._questions).to_bytes(8, "big")[-3:]
            self._trunk.send(decoder.encode_ping(self._question))
            self._mux.send(decoder.encode_ping(self._question))

    def pong(self, payload: bytes) -> None:
        """An answer came over the exec stream."""
        if payload == self._question and self._judgement is None:  # once, however often the agent says so
            self._judgement = self._loop.call_later(GRACE_S, self._judge)

    def _judge(self) -> None:
        self._question = b""
        self._judgement = None
        if self._trunk is not None:
            self._trunk.catch_up()  # a loop that was held up may not have read it yet
        if self._trunk is not None and self._trunk.heard_s < self._asked_s:
            self.lost("it leads nowhere any more", agent_lives=True)

    def lost(self, reason: str, *, for_good: bool = False, agent_lives: bool = False) -> None:
        """It broke: the agent is told, should it not know. `for_good`: there will be no other with this agent.

        Where it has not just said a word on the exec stream it may have gone itself.
        """
        self._barred = self._barred or for_good
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

    # What the gate calls.

    def announce(self, token: bytes) -> bytes:
        self._token = token
        return decoder.encode_trunk(token)

    def direct_ready(self, far: socket.socket) -> None:
        self._let_go()
        self._trunk = Trunk(self._loop, self, far, self._gate, self._gate.trunk_key(self._token), self._mux.window)

    def _let_go(self) -> None:
        if self._waits:
            self._waits = False
            self._gate.release(self)


class Trunk(Multiplexer[socket.socket]):
    """One that both sides have proven themselves on. Owns the socket."""

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
        """When the last word came, on the monotonic clock."""
        return self._heard_s

    def has(self, number: int) -> bool:
        return number in self._channels

    @property
    def has_said_all(self) -> bool:
        """Whether there are no streams on it, and the agent has heard the ends of those that were."""
        return self.is_idle and not self._out and not self._unanswered

    def open(self, number: int, relay: StreamOwner, payload: bytes, *, datagrams: bool) -> MuxStream | None:
        """A stream here; None: what it takes to dial is too long to be signed, or the stream numbers began again at 1."""
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
        """As long as there are connections."""
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
        """Take what has come; one that is held has said too much, not too little."""
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
            # The agent's, or of an attacker who can write to that network: neither gets a second one.
            self._trunks.lost(str(error), for_good=True)
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _lose(self, reason: str) -> None:
        self._trunks.lost(reason)

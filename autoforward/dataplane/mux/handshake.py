"""The direct path: TCP connections from this machine to the agent, one per bulk stream, and one as the trunk.

The agent listens only after LISTEN, with a secret that only the exec stream carries. Each connection has a fresh token
(DIRECT, TRUNK) and begins with both sides proving that they know the secret, without sending it. If anything fails,
the stream stays on the mux and neither end notices. Protocol: SPEC.md, "Direct connections".
"""

from __future__ import annotations

import errno
import hmac
import itertools
import logging
import os
import selectors
import socket
import time
from typing import Protocol

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import SECRET_SIZE, TOKEN_SIZE, Listening
from autoforward.core.errors import ProtocolError
from autoforward.net.loop import Loop, Timer

log = logging.getLogger(__name__)

NONCE_BYTES = 16
PROOF_BYTES = 32
HOST_WORDS = b"autoforward direct host"
AGENT_WORDS = b"autoforward direct agent"
TRUNK_WORDS = b"autoforward trunk key"

MAX_DIRECT = 64
"""Direct connections of one agent at once; further streams stay on the mux."""

HANDSHAKE_TIMEOUT_S = 2.0
"""The container is on this machine: a handshake takes less than a millisecond, or a firewall drops it."""

MAX_FAILURES = 3
"""Failed handshakes in a row before a pause: more than a busy agent."""

FIRST_REST_S = 5.0
"""Before an unreachable address is tried again; doubles with each failure."""

MAX_REST_S = 60.0


def proof(secret: bytes, words: bytes, token: bytes, nonce: bytes) -> bytes:
    """HMAC-SHA256 (32 bytes) that proves knowledge of `secret`."""
    return hmac.digest(secret, words + token + nonce, "sha256")


class DirectUser(Protocol):
    """A stream that may move, or the trunk; owns the connection from `direct_ready` on."""

    @property
    def number(self) -> int: ...

    def announce(self, token: bytes) -> bytes:
        """The frame that assigns the connection with this token."""

    def direct_ready(self, far: socket.socket) -> None: ...


class MuxWriter(Protocol):
    def send(self, frame: bytes | memoryview) -> None: ...


class DirectConnector:
    """The agent's listener, seen from the host: requested with the first connection, closed while `address` is None.

    `address`: one of the container's own, reachable from this machine.
    """

    def __init__(self, loop: Loop, mux: MuxWriter, address: str | None) -> None:
        self._loop = loop
        self._mux = mux
        self.address = address
        self._secret = b""
        self._place: tuple[str, int] | None = None
        """Address and port of the agent's listener, once known."""
        self._asked = self._shut = False
        self._shut_at: str | None = None
        """An address that is no longer tried."""
        self._stopping = b""
        """The payload of the ping after "stop listening": a LISTENING before its answer is stale."""
        self._waiting: dict[int, DirectUser] = {}
        self._announced: dict[bytes, _Handshake] = {}
        self._handshakes: set[_Handshake] = set()
        self._numbers = itertools.count(1)
        self._failures = self._rests = 0
        self._rests_until_s = 0.0
        self.active = 0
        """Streams that have a direct connection, and those with a handshake."""

    def __repr__(self) -> str:
        return f"<DirectConnector {self._place or self.address} active={self.active}>"

    def want(self, user: DirectUser) -> bool:
        """Start a direct connection for this stream if possible, and return whether; call `release` at the stream's end."""
        if self._shut or self.address is None or self.active >= MAX_DIRECT or time.monotonic() < self._rests_until_s:
            return False
        self.active += 1
        if self._place is not None:
            self._connect(user, self._place)
            return True
        self._waiting[user.number] = user
        self._ask()
        return True

    def _ask(self) -> None:
        if self._asked or self._stopping or self._shut or self.address is None:
            return
        self._asked = True
        self._secret = os.urandom(SECRET_SIZE)
        self._mux.send(decoder.encode_listen(self._secret, self.address))

    def allow(self, address: str | None) -> None:
        """Where the container can be reached from now on; None: nowhere. Established connections stay.

        Streams that wait for a connection keep waiting for an address.
        """
        if address == self.address:
            return
        self.address = address
        self._shut = self._shut and address in (None, self._shut_at)
        self._place = None
        self._failures = self._rests = 0
        self._rests_until_s = 0.0
        self._announced.clear()
        for handshake in list(self._handshakes):
            self._waiting[handshake.user.number] = handshake.user
            handshake.close()
        if self._asked:
            self._asked = False
            self._stopping = self._next_ping()
            self._mux.send(decoder.encode_listen(b"", "") + decoder.encode_ping(self._stopping))
        if self._waiting:
            self._ask()

    def _next_ping(self) -> bytes:
        return next(self._numbers).to_bytes(8, "big")

    def release(self, user: DirectUser) -> None:
        """This stream has ended."""
        self._waiting.pop(user.number, None)
        for handshake in [one for one in self._handshakes if one.user is user]:
            handshake.close()
        self.active -= 1

    def listening(self, said: Listening) -> None:
        """The agent listens, or has stopped listening."""
        if not self._asked and not self._stopping:
            raise ProtocolError("the agent listens without having been asked to")
        if self._stopping:
            return
        if not said.port:
            self._close_gate(
                f"the agent cannot listen there: {os.strerror(said.errno) if said.errno else 'it has stopped listening'}"
            )
            return
        if self._shut or self._place is not None or self.address is None:
            return
        self._place = self.address, said.port
        waiting, self._waiting = self._waiting, {}
        for user in waiting.values():
            self._connect(user, self._place)

    def trunk_key(self, token: bytes) -> bytes:
        """The key that signs SIGNED_OPEN on the trunk with this token."""
        return hmac.digest(self._secret, TRUNK_WORDS + token, "sha256")

    def close(self) -> None:
        """The mux has ended."""
        self._shut = True
        self._waiting.clear()
        self._announced.clear()
        for handshake in list(self._handshakes):
            handshake.close()

    def _connect(self, user: DirectUser, place: tuple[str, int]) -> None:
        token = os.urandom(TOKEN_SIZE)
        handshake = _Handshake(self, self._loop, user, self._secret, token, place)
        self._handshakes.add(handshake)
        # The connection is faster than the exec stream: start it once a pong shows that the agent has the token.
        ping = self._next_ping()
        self._announced[ping] = handshake
        self._mux.send(user.announce(token) + decoder.encode_ping(ping))

    def pong(self, payload: bytes) -> None:
        """The agent has received everything sent before the ping with this payload."""
        if payload == self._stopping:
            self._stopping = b""
            if self._waiting:
                self._ask()
        handshake = self._announced.pop(payload, None)
        if handshake is not None:
            handshake.start()

    # Called by handshakes.

    def forget(self, handshake: _Handshake) -> None:
        self._handshakes.discard(handshake)

    def proven(self, user: DirectUser, far: socket.socket) -> None:
        self._failures = self._rests = 0
        user.direct_ready(far)

    def failed(self, reason: str, *, unreachable: bool) -> None:
        """The stream stays on the exec stream; a later one tries again, since overload and lost networks pass."""
        self._failures += 1
        log.debug("no direct connection to %s for one stream: %s", self.address, reason)
        now_s = time.monotonic()
        if (unreachable or self._failures >= MAX_FAILURES) and now_s >= self._rests_until_s:
            rest_s = min(FIRST_REST_S * 2.0 ** min(self._rests, 16), MAX_REST_S)
            self._rests_until_s = now_s + rest_s
            self._rests += 1
            level = logging.INFO if self._rests == 1 else logging.DEBUG
            log.log(level, "no direct path to %s for %.0f s at least: %s", self.address, rest_s, reason)

    def not_the_agent(self, reason: str) -> None:
        """The address is another machine's: it is not dialled again."""
        self._close_gate(reason)

    def _close_gate(self, reason: str) -> None:
        if not self._shut:
            self._shut, self._shut_at = True, self.address
            self._waiting.clear()
            log.info("no direct path to %s, connections stay on the exec stream: %s", self.address, reason)


class _Handshake:
    """From connect to proof. Closed silently if its stream ends first."""

    def __init__(
        self,
        gate: DirectConnector,
        loop: Loop,
        user: DirectUser,
        secret: bytes,
        token: bytes,
        address: tuple[str, int],
    ) -> None:
        self.user = user
        self._address = address
        self._gate = gate
        self._loop = loop
        nonce = os.urandom(NONCE_BYTES)
        self._hello = token + nonce + proof(secret, HOST_WORDS, token, nonce)
        self._expected = proof(secret, AGENT_WORDS, token, nonce)
        self._answer = b""
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._closed = False

    def start(self) -> None:
        if self._closed:
            return
        self._loop.adopt(self)
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        try:
            self._sock = sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            result = sock.connect_ex(self._address)
        except OSError as error:  # no descriptors left, which says nothing about the path
            self._fail(error.strerror or str(error), unreachable=False)
            return
        if result not in (0, errno.EINPROGRESS):
            self._fail(os.strerror(result), unreachable=True)
            return
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._timed_out)
        self._loop.watch(sock.fileno(), selectors.EVENT_WRITE, self._on_ready)

    def _on_ready(self, events: int) -> None:
        sock = self._sock
        if sock is None:
            return
        try:
            if self._hello:
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    self._fail(os.strerror(error), unreachable=True)
                    return
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._hello = self._hello[sock.send(self._hello) :]
                if not self._hello:
                    self._loop.watch(sock.fileno(), selectors.EVENT_READ, self._on_ready)
                return
            data = sock.recv(PROOF_BYTES - len(self._answer))
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error.strerror or str(error), unreachable=False)
            return
        self._answer += data
        if not data:
            self._fail("it ended the handshake", unreachable=False)
        elif len(self._answer) == PROOF_BYTES:
            if hmac.compare_digest(self._answer, self._expected):
                self._loop.watch(sock.fileno(), 0, self._on_ready)
                self._sock = None
                self.close()
                self._gate.proven(self.user, sock)
            else:
                self.close()
                self._gate.not_the_agent("what answers there is not our agent")

    def _timed_out(self) -> None:
        self._fail(f"no answer within {HANDSHAKE_TIMEOUT_S:.0f} s", unreachable=not self._answer)

    def _fail(self, reason: str, *, unreachable: bool) -> None:
        self.close()
        self._gate.failed(reason, unreachable=unreachable)

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._gate.forget(self)
        self._loop.disown(self)
        if self._timer is not None:
            self._timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.watch(sock.fileno(), 0, self._on_ready)
            sock.close()

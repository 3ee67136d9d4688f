"""An agent for fuzzing the host: it reads what the host says, and says valid frames in whatever order a script wants.

What it says is allowed by SPEC.md as long as `is_right`; then the host has no reason to complain. The bytes of each direction
of a stream are a function of their position, so that nothing can get lost, doubled or out of order unseen.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
from dataclasses import dataclass, field
from typing import Final

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol import frames
from autoforward.dataplane.mux.handshake import AGENT_WORDS, HOST_WORDS, TRUNK_WORDS, proof
from tests.fuzz.client_model import pattern
from tests.fuzz.laws import must
from tests.support import agent_wire

WINDOW: Final = 128 * 1024
HOST_WINDOW: Final = 1024 * 1024


@dataclass(slots=True)
class AgentStream:
    """One that the host opened. `may_say`, `host_may_say`: credit; `heard`, `said`: bytes."""

    number: int
    path: Path
    udp: bool
    may_say: int
    host_may_say: int = WINDOW
    said: int = 0
    heard: int = 0
    answered: bool = False
    ended: bool = False
    host_ended: bool = False
    over: bool = False
    token: bytes = b""
    direct: socket.socket | None = None
    was_direct: bool = False
    host_moved: bool = False
    moved: bool = False


class Path:
    """Stdin and stdout, or the trunk. `sent` is what waits for the socket to take it."""

    def __init__(self, sock: socket.socket, role: agent_wire.Role, *, framed: bool) -> None:
        self.sock = sock
        self.decoder = agent_wire.Decoder(role)
        self.out = bytearray()
        self.reads = True
        self.closed = False
        self._framed = framed

    def say(self, data: bytes) -> None:
        if self._framed:
            data = b"\1\0\0\0" + len(data).to_bytes(4, "big") + data
        self.out += data

    def flush(self, most: int) -> int:
        """How much the socket has taken, `most` at most."""
        before = len(self.out)
        with contextlib.suppress(BlockingIOError):
            while self.out and before - len(self.out) < most and not self.closed:
                try:
                    del self.out[: self.sock.send(self.out[: most - before + len(self.out)])]
                except ConnectionError:
                    self.close()
        return before - len(self.out)

    def hear(self) -> list[agent_wire.Event]:
        found: list[agent_wire.Event] = []
        try:
            while self.reads and not self.closed:
                data = self.sock.recv(1 << 18)
                if not data:
                    self.close()
                found += self.decoder.feed(data) if data else []
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        return found

    def close(self) -> None:
        self.closed = True
        self.sock.close()


@dataclass(slots=True)
class ModelAgent:
    """`exec_path` is the far end of the engine's stream, `listener` where direct connections come in."""

    exec_path: Path
    listener: socket.socket
    is_right: bool = True
    streams: list[AgentStream] = field(default_factory=list)
    trunk: Path | None = None
    listens: bool = False
    secret: bytes = b""
    trunk_token: bytes = b""
    trunk_key: bytes = b""
    pings: list[tuple[Path, bytes]] = field(default_factory=list)
    waiting: list[socket.socket] = field(default_factory=list)
    taken: list[socket.socket] = field(default_factory=list)
    """Whatever has become of them: closed at the end."""
    largest: int = 0

    def hear(self) -> None:
        """What the host has said, held to the protocol."""
        for event in self.exec_path.hear():
            self._take(event, self.exec_path)
        if (trunk := self.trunk) is not None:
            for event in trunk.hear():
                self._take(event, trunk)
            if trunk.closed:
                self.end_trunk()
        for stream in self.streams:
            if stream.direct is not None and stream.host_moved:
                self._hear_direct(stream, stream.direct)

    def _take(self, event: agent_wire.Event, path: Path) -> None:
        match event:
            case frames.Hello():
                must(event.window == HOST_WINDOW, "the host's window", event)
            case agent_wire.Open(number, transport) | agent_wire.SignedOpen(number, _, transport):
                open_ones = {one.number for one in self.streams if not one.over}
                must(number not in open_ones, "a number is not used twice", event)
                if isinstance(event, agent_wire.SignedOpen):
                    payload = wire.open_payload(event.transport, event.port, event.addresses)
                    digest = hmac.digest(self.trunk_key, number.to_bytes(4, "big") + payload, "sha256")
                    must(hmac.compare_digest(digest[: frames.TAG_SIZE], event.tag), "an OPEN is signed", event)
                    must(number > self.largest, "numbers on a trunk grow", event)
                    self.largest = number
                self.streams.append(AgentStream(number, path, transport == "udp", HOST_WINDOW))
            case agent_wire.Listen(secret, _):
                must(not secret or not self.listens, "LISTEN while it does not listen", event)
                self.listens = bool(secret)
                self.secret = secret or self.secret
            case agent_wire.Trunk(token):
                self.end_trunk()
                self.trunk_token = token
            case agent_wire.Direct(number, token):
                for stream in self.streams:
                    if stream.number == number and not stream.over:
                        stream.token = token
            case frames.Ping(payload):
                self.pings.append((path, payload))
            case agent_wire.Watch() | frames.Pong():
                pass
            case _:
                number = event.stream  # type: ignore[union-attr]
                for stream in self.streams:
                    if stream.number == number and stream.path is path and not stream.over:
                        self._take_of(stream, event)

    def _take_of(self, stream: AgentStream, event: agent_wire.Event) -> None:
        match event:
            case frames.Data(_, payload, _):
                must(not stream.host_ended and not stream.host_moved, "no DATA after the end or MOVE", stream)
                stream.host_may_say -= len(payload)
                must(stream.host_may_say >= 0, "the host keeps to its credit", stream)
                if not stream.udp:
                    must(payload == pattern(stream.heard, len(payload)), "what the client said arrives", stream)
                stream.heard += len(payload)
            case frames.Eof():
                must(not stream.host_ended, "EOF once", stream)
                stream.host_ended = True
                stream.over = stream.over or stream.ended
            case frames.Reset():
                stream.over = True
                self._drop_direct(stream)
            case frames.Credit(_, size):
                stream.may_say += size
                must(stream.may_say <= HOST_WINDOW, "no more credit than a window", stream)
            case frames.Move():
                must(stream.was_direct and not stream.host_moved, "MOVE with a connection, once", stream)
                stream.host_moved = True

    # Direct connections and the trunk.

    def accept(self) -> None:
        try:
            while True:
                sock, _ = self.listener.accept()
                sock.setblocking(False)
                self.waiting.append(sock)
        except BlockingIOError:
            pass

    def greet(self, *, right: bool = True) -> None:
        """Answer the oldest connection that waits, if all of its greeting is there."""
        self.accept()
        if not self.waiting:
            return
        sock = self.waiting.pop(0)
        self.taken.append(sock)
        try:
            said = sock.recv(64)
            if len(said) < 64:
                sock.close()
                return
            token, nonce = said[:16], said[16:32]
            must(said[32:] == proof(self.secret, HOST_WORDS, token, nonce), "the host proves itself")
            sock.send(proof(self.secret, AGENT_WORDS, token, nonce) if right else bytes(32))
        except OSError:
            sock.close()
            return
        for stream in self.streams:
            if right and stream.token == token and not stream.over:
                stream.direct, stream.was_direct = sock, True
                return
        if right and token == self.trunk_token:
            self.end_trunk()
            self.trunk_key = hmac.digest(self.secret, TRUNK_WORDS + token, "sha256")
            self.trunk, self.largest = Path(sock, "agent-trunk", framed=False), 0
            return

    def end_trunk(self) -> None:
        trunk, self.trunk = self.trunk, None
        if trunk is not None:
            trunk.close()
            for stream in self.streams:
                if stream.path is trunk:
                    stream.over = True
                    self._drop_direct(stream)

    def _hear_direct(self, stream: AgentStream, sock: socket.socket) -> None:
        try:
            while True:
                data = sock.recv(1 << 16)
                if not data:
                    return
                must(data == pattern(stream.heard, len(data)), "what the client said arrives, moved", stream)
                stream.heard += len(data)
        except BlockingIOError:
            pass
        except OSError:
            self._drop_direct(stream)

    def _fin(self, stream: AgentStream) -> None:
        if stream.direct is not None:
            with contextlib.suppress(OSError):  # the host has closed it
                stream.direct.shutdown(socket.SHUT_WR)

    def _drop_direct(self, stream: AgentStream) -> None:
        if stream.direct is not None:
            stream.direct.close()
            stream.direct = None

    def close(self) -> None:
        self.end_trunk()
        self.exec_path.close()
        for stream in self.streams:
            self._drop_direct(stream)
        self.accept()
        for sock in (*self.waiting, *self.taken):
            sock.close()

    # What the script has it say. Each keeps to the protocol, or makes `is_right` false.

    def say_opened(self, stream: AgentStream) -> None:
        if not stream.answered and not stream.over:
            stream.answered = True
            stream.path.say(agent_wire.encode_opened(stream.number, 0))

    def say_refused(self, stream: AgentStream, errno: int) -> None:
        if not stream.answered and not stream.over:
            stream.over = True
            stream.path.say(agent_wire.encode_refused(stream.number, errno))

    def say_data(self, stream: AgentStream, size: int) -> None:
        size = min(size, stream.may_say, frames.MAX_DATAGRAM)
        if stream.ended or stream.over or stream.moved or not (size or stream.udp):
            return
        self.say_opened(stream)
        stream.path.say(wire.encode_data(stream.number, pattern(stream.said, size)))
        stream.said += size
        stream.may_say -= size

    def say_eof(self, stream: AgentStream) -> None:
        if not stream.ended and not stream.over:
            self.say_opened(stream)
            stream.ended = True
            stream.path.say(wire.encode_eof(stream.number))
            if stream.moved:
                self._fin(stream)
            stream.over = stream.host_ended and not stream.moved

    def say_reset(self, stream: AgentStream, errno: int) -> None:
        if not stream.over:
            stream.over = True
            stream.path.say(wire.encode_reset(stream.number, errno))
            if stream.direct is not None:
                self._fin(stream)
                stream.direct = None

    def say_credit(self, stream: AgentStream, size: int) -> None:
        size = min(size, WINDOW - stream.host_may_say)
        if size > 0 and not stream.over:
            stream.host_may_say += size
            stream.path.say(wire.encode_credit(stream.number, size))

    def say_move(self, stream: AgentStream) -> None:
        if not stream.host_moved or stream.moved or stream.over:
            return
        if stream.direct is None:
            self.say_reset(stream, 104)
        else:
            self.say_opened(stream)
            stream.moved = True
            stream.path.say(wire.encode_move(stream.number))
            if stream.ended:
                self._fin(stream)

    def say_direct(self, stream: AgentStream, size: int) -> None:
        if stream.moved and stream.direct is not None and not stream.ended:
            try:
                stream.said += stream.direct.send(pattern(stream.said, min(size, 65_536)))
            except BlockingIOError:
                pass
            except OSError:
                self._drop_direct(stream)

    def say_pongs(self) -> None:
        pings, self.pings = self.pings, []
        for path, payload in pings:
            if not path.closed:
                path.say(wire.encode_pong(payload))

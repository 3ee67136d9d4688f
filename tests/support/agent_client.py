"""A small host for the agent as a local child: it sends what tests ask for, keeps credit, and collects what comes."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol.frames import (
    MAX_PAYLOAD,
    Bye,
    Credit,
    Data,
    Eof,
    Hello,
    Listening,
    Move,
    Network,
    Opened,
    Pong,
    Process,
    Refused,
    Reset,
    SnapshotEvent,
)

WINDOW = 256 * 1024
TIMEOUT_S = 30.0


@dataclass
class Stream:
    """What the host knows of one stream. `frozen`: what comes is kept, but gives no credit back."""

    number: int
    credit: int
    udp: bool = False
    frozen: bool = False
    opened: int | None = None
    refused: int | None = None
    reset: int | None = None
    eof: bool = False
    moved: bool = False
    received: bytearray = field(default_factory=bytearray)
    datagrams: list[bytes] = field(default_factory=list)
    owed: int = 0
    outgoing: bytearray = field(default_factory=bytearray)

    @property
    def over(self) -> bool:
        return self.eof or self.reset is not None or self.refused is not None


class Conversation:
    """On one path to the agent. `wait` is the only place where anything is read or written."""

    def __init__(self, stdin: int, stdout: int, decoder: wire.Decoder) -> None:
        self.stdin, self.stdout = stdin, stdout
        os.set_blocking(stdin, False)
        self.decoder = decoder
        self.pending = bytearray()
        self.streams: dict[int, Stream] = {}
        self.window = 0
        self.snapshots: list[SnapshotEvent] = []
        self.processes: dict[int, Process] = {}
        self.networks: list[bytes] = []
        self.pongs: list[bytes] = []
        self.listening: list[Listening] = []
        self.bye: Bye | None = None
        self.ended = False
        self.partial: defaultdict[int, bytes] = defaultdict(bytes)

    def send(self, data: bytes) -> None:
        self.pending += data

    def open(self, number: int, port: int, *addresses: str, udp: bool = False) -> Stream:
        stream = self.streams[number] = Stream(number, self.window, udp)
        payload = wire.open_payload("udp" if udp else "tcp", port, addresses or ("127.0.0.1",))
        self.send(self.opening(number, payload))
        return stream

    def opening(self, number: int, payload: bytes) -> bytes:
        """The frame that opens a stream on this path."""
        return wire.encode_open_payload(number, payload)

    def upload(self, stream: Stream, data: bytes) -> None:
        """Sends `data` as the credit allows."""
        stream.outgoing += data
        self._send_within_credit(stream)

    def _send_within_credit(self, stream: Stream) -> None:
        while stream.outgoing and stream.credit:
            size = min(len(stream.outgoing), stream.credit, MAX_PAYLOAD)
            self.send(wire.encode_data(stream.number, bytes(stream.outgoing[:size])))
            del stream.outgoing[:size]
            stream.credit -= size

    def wait(self, until: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Reads and writes until `until` holds; AssertionError at the timeout or when the agent ends first."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            writing = False
            while not until():
                assert not self.ended, f"the agent ended while waiting for {what}: {self.bye}"
                if bool(self.pending) != writing:
                    writing = not writing
                    (selector.register if writing else selector.unregister)(
                        self.stdin, *([selectors.EVENT_WRITE] if writing else [])
                    )
                left = deadline - time.monotonic()
                assert left > 0, f"no {what} within {timeout_s} s"
                for key, _ in selector.select(left):
                    if key.fd == self.stdin:
                        self._write()
                    else:
                        self._read()

    def write_out(self) -> None:
        """Writes all that is pending without reading anything."""
        os.set_blocking(self.stdin, True)
        while self.pending:
            self._write()
        os.set_blocking(self.stdin, False)

    def _write(self) -> None:
        try:
            written = os.write(self.stdin, self.pending[: 1 << 16])
        except BrokenPipeError:
            self.pending.clear()
            return
        del self.pending[:written]

    def _read(self) -> None:
        data = os.read(self.stdout, 1 << 18)
        self.ended = not data
        for event in self.decoder.feed(data):
            match event:
                case Data():
                    assert not self.streams[event.stream].moved, "DATA after MOVE"
                    self._take(event)
                case Hello():
                    self.window = event.window
                case Opened():
                    self.streams[event.stream].opened = event.address_index
                case Refused():
                    self.streams[event.stream].refused = event.errno
                case Reset():
                    self.streams[event.stream].reset = event.errno
                case Eof():
                    self.streams[event.stream].eof = True
                case Credit():
                    stream = self.streams[event.stream]
                    stream.credit += event.size
                    self._send_within_credit(stream)
                case SnapshotEvent():
                    self.snapshots.append(event)
                case Network():
                    assert not self.snapshots or self.networks, "it is said before the first snapshot"
                    self.networks.append(event.namespace)
                case Process():
                    self.processes[event.inode] = event
                case Pong():
                    self.pongs.append(event.payload)
                case Move():
                    self.streams[event.stream].moved = True
                case Listening():
                    self.listening.append(event)
                case Bye():
                    self.bye = event
                case _:
                    raise AssertionError(f"not for the host: {event}")

    def _take(self, event: Data) -> None:
        stream = self.streams[event.stream]
        if stream.udp:
            self.partial[stream.number] += event.payload
            if event.last:
                stream.datagrams.append(self.partial.pop(stream.number))
        else:
            stream.received += event.payload
        stream.owed += len(event.payload)
        if stream.owed >= WINDOW // 4 and not stream.frozen:
            self.send(wire.encode_credit(stream.number, stream.owed))
            stream.owed = 0

    def thaw(self, stream: Stream) -> None:
        stream.frozen = False
        self.send(wire.encode_credit(stream.number, stream.owed))
        stream.owed = 0

    def settle(self) -> None:
        """Waits until all that was sent has been read and acted upon."""
        count = len(self.pongs)
        self.send(wire.encode_ping(b"settled?"))
        self.wait(lambda: len(self.pongs) > count, "pong")


LOOKED_INTO = "--dumpable"
"""What an agent is started with whose descriptors a test counts: without it only root can."""


class AgentClient(Conversation):
    """The agent as a child, on its stdin and stdout."""

    def __init__(self, binary: Path, *arguments: str, greet: bool = True) -> None:
        self.process = subprocess.Popen(
            [binary, LOOKED_INTO, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        super().__init__(self.process.stdin.fileno(), self.process.stdout.fileno(), wire.Decoder())
        if greet:
            self.send(wire.encode_hello(WINDOW))
            self.wait(lambda: self.window > 0, "the agent's hello")

    def until_end(self, timeout_s: float = TIMEOUT_S) -> int:
        """Reads to the end of stdout; the exit status."""
        self.wait(lambda: self.ended, "end of the agent", timeout_s)
        return self.process.wait(timeout_s)

    def stderr_text(self) -> str:
        """All of stderr; only after the end."""
        assert self.process.stderr
        return self.process.stderr.read().decode()

    def close(self) -> None:
        """Ends the agent, whatever state it is in; a sanitizer's report fails the test here."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.stdout.close()
            status = self.process.wait(TIMEOUT_S)
        finally:
            self.process.kill()
            text = self.process.stderr.read().decode() if not self.process.stderr.closed else ""
            self.process.stderr.close()
        assert status >= 0, f"the agent died of signal {-status}"
        assert "ERROR: " not in text and "runtime error" not in text, text


def echo(connection: socket.socket) -> None:
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def descriptors(agent: AgentClient) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


def cpu_s(agent: AgentClient) -> float:
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(check: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.005)

"""The soak's clients: a thread a forward, transfers of every size, each byte compared; and what to make of those that failed.

A connection may fail while a fault of its container is going on, and only then. What arrived is compared even then.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from dataclasses import dataclass, field

from tests.support.soak_server import content

TIMEOUT_S = 40.0
MAX_BYTES = 2 * 1024 * 1024
AFTERMATH_S = 2.0
"""A connection that was made this long after a fault was over may still have been made on what it left."""


@dataclass(frozen=True)
class Port:
    """A forward of the soak: which container, which port there, which here."""

    container: str
    container_port: int
    host_port: int

    @property
    def who(self) -> bytes:
        return f"{self.container} {self.container_port}\n".encode()


@dataclass(frozen=True)
class Failure:
    port: Port
    request: str
    problem: str
    began_s: float
    ended_s: float


class WrongBytesError(Exception):
    """What came is not the beginning of what was to come."""


def ask(port: Port, request: bytes, wanted: bytes, *, sent: bytes = b"", timeout_s: float = TIMEOUT_S) -> None:
    """One connection. Raises OSError when it fails or ends early, WrongBytesError."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port.host_port), timeout=timeout_s) as client:
        sender = threading.Thread(target=_send, args=(client, request + sent), daemon=True)
        sender.start()
        try:
            while piece := client.recv(1 << 18):
                received += piece
        finally:
            if received != wanted:  # it may be sending still, to nobody
                client.close()
            sender.join()
            if not wanted.startswith(bytes(received)):
                raise WrongBytesError(f"{request!r}: {len(received)} bytes, not as sent: {bytes(received[:60])!r}")
    if len(received) < len(wanted):
        raise EOFError(f"ended in order after {len(received)} of {len(wanted)} bytes")


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
    except OSError:  # the other direction says what became of it
        pass


def answers(port: Port, *, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether this forward leads where it should, now."""
    try:
        ask(port, b"who\n", port.who, timeout_s=timeout_s)
    except (OSError, EOFError):
        return False
    return True


@dataclass
class Clients:
    """`start`, `pause`/`go`, `stop`; `fault_begins` and `fault_over` say what may fail."""

    ports: list[Port]
    seed: int
    done: int = 0
    moved_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    windows: list[tuple[frozenset[str], float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._going = threading.Event()
        self._idle = {port: threading.Event() for port in self.ports}
        self._threads = [threading.Thread(target=self._work, args=(port,), daemon=True) for port in self.ports]

    def start(self) -> None:
        self._going.set()
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Returns when no connection is open any more."""
        self._going.clear()
        for idle in self._idle.values():
            assert idle.wait(2 * TIMEOUT_S), "a connection does not end"

    def go(self) -> None:
        self._going.set()

    def stop(self) -> None:
        self._ended.set()
        self._going.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)

    def _work(self, port: Port) -> None:
        choose = random.Random(f"{self.seed} {port.container} {port.container_port}")
        while not self._ended.is_set():
            self._idle[port].set()
            self._going.wait()
            self._idle[port].clear()
            self._one(port, choose)
            self._ended.wait(choose.uniform(0, 0.2))
        self._idle[port].set()

    def _one(self, port: Port, choose: random.Random) -> None:
        kind, seed = choose.choice(("who", "who", "get", "put")), choose.randrange(1 << 30)
        size = int(MAX_BYTES ** choose.random())
        request = f"{kind} {seed} {size}" if kind != "who" else kind
        data = content(seed, size) if kind != "who" else b""
        wanted = {"who": port.who, "get": data, "put": b"ok\n"}[kind]
        began_s = time.monotonic()
        try:
            ask(port, f"{request}\n".encode(), wanted, sent=data if kind == "put" else b"")
        except WrongBytesError as error:
            # An upload that was cut is what the server says of it, if it can still say something.
            cut = kind == "put" and " bytes for " in str(error)
            with self._lock:
                if cut:
                    self.failures.append(Failure(port, request, str(error), began_s, time.monotonic()))
                else:
                    self.wrong.append(f"{port}: {error}")
        except (OSError, EOFError) as error:
            with self._lock:
                self.failures.append(Failure(port, request, repr(error), began_s, time.monotonic()))
            self._ended.wait(0.1)
        else:
            with self._lock:
                self.done += 1
                self.moved_bytes += len(data)

    def add_window(self, containers: frozenset[str], began_s: float, over_s: float) -> None:
        """While a fault of these containers was going on (monotonic seconds)."""
        self.windows.append((containers, began_s, over_s + AFTERMATH_S))

    def unexplained(self) -> list[Failure]:
        """Connections that failed although nothing happened to their container meanwhile."""
        return [
            failure
            for failure in self.failures
            if not any(
                failure.port.container in containers and failure.began_s < over_s and failure.ended_s > began_s
                for containers, began_s, over_s in self.windows
            )
        ]

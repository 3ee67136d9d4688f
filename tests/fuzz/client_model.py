"""A user's connection, for fuzzing the host: what it says and hears is a function of the position, as with `agent_model`."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable
from typing import Any, Final

from autoforward.net.write_buffer import RESET_ON_CLOSE
from tests.fuzz.laws import must

SMALL_BYTES: Final = 32 * 1024
"""What the kernel keeps on the way to clients and to the agent: what does not fit waits in the data plane, and is seen."""

_PATTERN = bytes(range(251)) * 600
_sources = itertools.count(1)


def pattern(at: int, size: int) -> bytes:
    """What stands from position `at` on, in every stream and direction; 128 KiB at most."""
    return _PATTERN[at % 251 : at % 251 + size]


class Client:
    """One connection of a user's; what it says and hears is the pattern."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BYTES)
        number = next(_sources)
        # An address of its own: ports in TIME_WAIT would run out.
        self.sock.bind((f"127.{2 + number // 60_000 % 200}.{number // 250 % 240}.{1 + number % 250}", 0))
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.said = self.heard = 0
        self.reads = True
        self.ended = self.over = False

    def say(self, size: int) -> None:
        if not self.ended and not self.over:
            with contextlib.suppress(BlockingIOError):
                self.said += self._try(lambda: self.sock.send(pattern(self.said, size)))

    def hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.reads and not self.over:
                data: bytes = self._try(lambda: self.sock.recv(1 << 17)) or b""
                if not data:
                    return
                must(data == pattern(self.heard, len(data)), "what the server said arrives", self.heard, len(data))
                self.heard += len(data)

    def end(self) -> None:
        if not self.ended and not self.over:
            self.ended = True
            self._try(lambda: self.sock.shutdown(socket.SHUT_WR))

    def close(self, *, reset: bool) -> None:
        self.over = True
        if reset and self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BlockingIOError:
            raise
        except OSError:  # reset by the host
            self.close(reset=True)
            return 0

"""Plain TCP to an engine that has none: what comes to a port of the loopback goes on to where `dial` leads.

Both directions end separately, as TCP has it: what goes through can be a hijacked stream, or TLS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

CLONE_NEWNET = 0x40000000


class TcpRelay:
    """Listens from its making to `close`, which also ends the connections that go through."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self._dial = dial
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._dial()
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            done = threading.Barrier(2)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink, done), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, done: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if done.wait() == 0:
            for sock in (source, sink):
                self._open.discard(sock)
                sock.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def to_unix(path: Path) -> Callable[[], socket.socket]:
    def dial() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return sock

    return dial


def to_loopback_of(pid: int, port: int) -> Callable[[], socket.socket]:
    """To a port of the loopback in the network namespace of that process. Needs root."""

    def dial() -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:  # a thread of its own, which stays in that namespace and ends with it
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)
            made.append(socket.create_connection(("127.0.0.1", port)))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not made:
            raise ConnectionRefusedError(f"nobody listens on {port} there")
        return made[0]

    return dial

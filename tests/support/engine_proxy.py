"""A unix socket in front of the engine: streams can be cut or stall, and the socket can go and come back."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

UPSTREAM = "/var/run/docker.sock"


class EngineProxy:
    """Listens on `path` when made; `close` at the end. `refuse(line)` says which requests get no answer."""

    def __init__(self, path: Path, upstream: str = UPSTREAM) -> None:
        self.path, self._upstream = path, upstream
        self.refuse: Callable[[str], bool] = lambda _line: False
        self.requests: list[str] = []
        """The first lines of all requests, in the order in which they came."""
        self._lock = threading.Lock()
        self._pairs: list[tuple[str, socket.socket, socket.socket]] = []
        self._listener: socket.socket | None = None
        self._flowing = threading.Event()
        self.resume()
        self.appear()

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    def appear(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(128)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def vanish(self) -> None:
        """No socket any more; what is connected stays so."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self.path.unlink()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()

    def cut(self, which: Callable[[str], bool] = lambda _line: True) -> int:
        """End the connections whose first request line is wanted, in the middle of whatever they carry; how many."""
        with self._lock:
            chosen = [pair for pair in self._pairs if which(pair[0])]
        for _, client, engine in chosen:
            for end in (client, engine):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        return len(chosen)

    def stall(self) -> None:
        """As an engine that is stopped: connections are taken, and no byte goes either way until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        self._flowing.set()

    def close(self) -> None:
        self.resume()
        self.vanish()
        self.cut()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as engine:
            first = client.recv(65536)
            self._flowing.wait()
            line = first.split(b"\r\n")[0].decode(errors="replace")
            self._note(first)
            if not first or self.refuse(line):
                return
            engine.connect(self._upstream)
            engine.sendall(first)
            pair = (line, client, engine)
            with self._lock:
                self._pairs.append(pair)
            back = threading.Thread(target=self._pump, args=(engine, client), daemon=True)
            back.start()
            self._pump(client, engine, self._note)
            back.join()
            with self._lock:
                self._pairs.remove(pair)

    def _note(self, piece: bytes) -> None:
        line = piece.split(b"\r\n", 1)[0]
        if line.endswith(b" HTTP/1.1"):
            self.requests.append(line.decode(errors="replace"))

    def _pump(
        self, source: socket.socket, sink: socket.socket, note: Callable[[bytes], None] = lambda _piece: None
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                note(piece)
                self._flowing.wait()
                sink.sendall(piece)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def is_reachable() -> bool:
    """Whether the engine is on the socket that a proxy can stand before."""
    return os.access(UPSTREAM, os.R_OK | os.W_OK) and not os.environ.get("DOCKER_HOST")

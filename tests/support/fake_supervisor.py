"""A supervisor that only says what it is told to, on the control socket of a home: to `list --watch`, in a real terminal."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class FakeSupervisor:
    """A context manager. `rows` can be set at any time: what moves in them is seen with the next look (`looks` counts them),
    the rest when `changed` tells of it. `asked` are the requests for something to be done.
    """

    def __init__(self, home: Path, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.rows = list(rows)
        self.asked: list[dict[str, Any]] = []
        self.looks = 0
        self._path = home / "supervisor.sock"
        self._followers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> FakeSupervisor:
        self._server.bind(str(self._path))
        self._server.listen(16)
        self._start(self._accept)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._path.unlink()
        # A thread that waits in accept is not woken by close alone.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(20)
        for follower in self._followers:
            follower.close()

    def changed(self) -> None:
        for follower in self._followers:
            _send(follower, {"type": "event", "line": "PORT_EVENT: {}"})

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._server.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        with client.makefile("rb") as lines:
            line = lines.readline()
        request = json.loads(line or "{}")
        if request.get("op") == "events":
            self._followers.append(client)
            return
        with client:
            match request.get("op"):
                case "list":
                    _send(client, {"type": "result", "rows": self.rows})
                    self.looks += 1
                case "counters":
                    counters = {
                        row["id"]: [*row["connections"].values(), *row["bytes"].values()]
                        for row in self.rows
                        if row["id"]
                    }
                    _send(client, {"type": "result", "counters": counters})
                    self.looks += 1
                case "stop":
                    self.asked.append(request)
                    ended = [row for row in self.rows if row["id"] == request["target"]]
                    self.rows = [row for row in self.rows if row not in ended]
                    _send(client, {"type": "result", "rows": ended})
                case None:  # it hung up before it had asked
                    pass


def _send(client: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it has gone
        client.sendall(json.dumps(message).encode() + b"\n")

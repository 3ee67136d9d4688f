"""An engine of one container, whose processes are socketpairs in the engine's own stream format, scripted by the test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoforward.core.errors import AutoforwardError, TargetError
from autoforward.core.identity.labels import carries
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.exec_stream import SocketStream
from tests.support.harness import TIMEOUT_S, frame

SOCAT = b"AF probe 1\nAF shell dash\nAF tool cat\nAF socat 1.7.4.4\nAF probe end\n"
NO_TOOLS = b"AF probe 1\nAF shell dash\nAF tool cat\nAF probe end\n"
HELLO = b"AF hello 1 pid=7 filter=grep interval=0.5\n"
ROW = "  0: {address}:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
OPENED = b"2026/11/21 10:19:02 socat[84] N successfully connected from local address AF=2 127.0.0.1:4000\n"


class Process:
    """The far end of one exec: what it says is framed; `stdin` is what was written to it."""

    def __init__(self, sock: socket.socket, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.environment = dict(environment)
        self._sock = sock
        self._number = 0
        sock.settimeout(TIMEOUT_S)

    def say(self, payload: bytes, stream: int = 1) -> None:
        self._sock.sendall(frame(payload, stream))

    def read(self) -> bytes:
        return self._sock.recv(65536)

    def end(self) -> None:
        """The process ends: EOF on its stream."""
        self._sock.close()

    def hears_eof(self) -> bool:
        """Whether its stdin is at its end; waits for it, past whatever was written before."""
        with contextlib.suppress(ConnectionResetError):
            while self._sock.recv(65536):
                pass
        return True

    def listen(self, *container_ports: int) -> None:
        """As the watcher: the next complete snapshot, servers on 127.0.0.1."""
        self._number += 1
        rows = "".join(
            ROW.format(address="0100007F", port=port, inode=1000 + n) for n, port in enumerate(container_ports)
        )
        text = f"AF begin {self._number}\n{rows}AF end {self._number}\n"
        self.say((HELLO if self._number == 1 else b"") + text.encode())


class FakeEngine:
    """The methods of `Engine` that a session uses. Runs in worker threads; the test changes it from the loop's."""

    endpoint = EngineEndpoint("unix:///engine", "a test")

    def __init__(self, *, probe: bytes = SOCAT) -> None:
        self.info: ContainerInfo | None = ContainerInfo("c0ffee00c0ffee00", "web", "running", {})
        self.probe = probe
        self.exit_status: int | None = 0
        self.broken: AutoforwardError | None = None
        self.hanging: threading.Event | None = None
        self.inspected = 0
        self.watchers: list[Process] = []
        self.relays: list[Process] = []
        self.streams: list[SocketStream] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def change(self, **what: Any) -> None:
        assert self.info is not None
        self.info = replace(self.info, **what)

    # What the session calls.

    def inspect_with_network(self, container_ref: str) -> ContainerInfo:
        return self.inspect(container_ref)

    def inspect(self, container_ref: str) -> ContainerInfo:
        self.inspected += 1
        if self.hanging is not None:
            assert self.hanging.wait(TIMEOUT_S)
        if self.broken is not None:
            raise self.broken
        if self.info is None or self.info.container_id != container_ref:
            raise TargetError(f"no such container: {container_ref}")
        return self.info

    def find_containers(self, labels: Mapping[str, str | None], *, all: bool = True) -> list[ContainerInfo]:
        found = [self.info] if self.info is not None else []
        return [info for info in found if carries(info.labels, labels) and (all or info.running)]

    def image_labels(self, _info: ContainerInfo) -> dict[str, str]:
        return {}

    def architecture(self, _info: ContainerInfo) -> str:
        """One that there is no agent for: these sessions are on the shell lanes."""
        return "pdp11"

    def open_exec(self, container_id: str, argv: Sequence[str], environment: Mapping[str, str]) -> SocketStream:
        if not self.inspect(container_id).running:
            raise AutoforwardError("the engine says: the container is not running")
        ours, theirs = socket.socketpair()
        process = Process(theirs, argv, environment)
        match argv[3]:
            case "autoforward-probe":
                if self.probe:
                    process.say(self.probe)
                process.end()
            case "autoforward-watcher":
                self.watchers.append(process)
            case "autoforward-relay":
                self.relays.append(process)
        self._loop.call_soon_threadsafe(self._news.set)
        stream = SocketStream(ours, b"", "exec")
        self.streams.append(stream)
        return stream

    machine = "pdp11"

    def goes_by_number(self, _container_id: str, _words: str) -> bool:
        return False

    def exit_code(self, exec_id: str) -> int | None:
        return self.exit_status

    # What the test calls.

    async def watcher(self, number: int = 1) -> Process:
        """The watcher that was started as the n-th; waits for it."""
        return await self._nth(self.watchers, number)

    async def relay(self, number: int = 1) -> Process:
        return await self._nth(self.relays, number)

    async def _nth(self, processes: list[Process], number: int) -> Process:
        async with asyncio.timeout(TIMEOUT_S):
            while len(processes) < number:
                self._news.clear()
                await self._news.wait()
        return processes[number - 1]

    def close(self) -> None:
        if self.hanging is not None:
            self.hanging.set()
        for process in (*self.watchers, *self.relays):
            process.end()

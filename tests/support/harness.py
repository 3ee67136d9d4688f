"""What tests of the control side share: real sockets, a real data plane and registry, and a publisher that checks facts."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec

import jsonschema

from autoforward.core.model import ForwardKey, Listener
from autoforward.dataplane.messages import PlaneEvent, RelayPlan, StreamFailed, StreamReady, StreamWanted
from autoforward.dataplane.plane import DataPlane
from autoforward.engine.exec_stream import STDERR, SocketStream
from autoforward.forwards.allocator import Allocator
from autoforward.forwards.forwarder import Forwarder, Services
from autoforward.forwards.plan import ObservedPort, Plan, SessionRules, plan
from autoforward.forwards.rows import Place
from autoforward.lanes.relay_tools import Netcat, netcat_tool
from autoforward.state.buffered_registry import BufferedRegistry
from autoforward.state.document import current_process
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry
from tests.conftest import SCHEMA
from tests.support.containers import eventually

TIMEOUT_S = 30.0
PLACE = Place("unix:///engine|name:web", "c0ffee00c0ffee00", "web", "/home/me/web", None)
LOOPBACK = "127.0.0.1"
P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """An `async def` test as a plain one, on a loop in debug mode; it fails rather than hangs."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TIMEOUT_S * 2):
                await test(*args, **kwargs)

        asyncio.run(bounded(), debug=True)

    return run


def free_port() -> int:
    """A number that is free on both loopback addresses, outside the range from which clients get theirs."""
    while True:
        number = random.randrange(12_000, 32_000)
        try:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                with socket.socket(family) as sock:
                    sock.bind((address, number))
        except OSError:
            continue
        return number


def accepts(host_port: int, host_ip: str = "127.0.0.1") -> bool:
    """Whether a connection is accepted now; False when it is refused."""
    try:
        socket.create_connection((host_ip, host_port), timeout=TIMEOUT_S).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass  # accepted, and reset by the data plane before connect() had returned
    return True


def frame(payload: bytes, stream: int = 1) -> bytes:
    """Bytes of a process's output as the engine frames them."""
    return struct.pack(">B3xI", stream, len(payload)) + payload


class Recorder:
    """The publisher. Each event must be of the schema, and true at the moment it is published."""

    def __init__(self, paths: StatePaths, registry: Registry) -> None:
        self.events: list[PortEvent] = []
        self.connects = True
        """Whether it tries the ports of events; each try is a connection that somebody has to answer."""
        self.foreign_ports: set[int] = set()
        """Host ports that somebody else listens on by now."""
        self._registry = registry
        self._log = EventLog(paths, self._complain)
        self._validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
        self._news = asyncio.Event()

    @staticmethod
    def _complain(text: str) -> None:
        raise AssertionError(text)

    async def publish(self, event: PortEvent) -> PortEvent:
        self._check(event)
        written = self._log.append(event)
        self._validator.validate(written.to_json())
        self.events.append(written)
        self._news.set()
        return written

    def _check(self, event: PortEvent) -> None:
        if event.host_port is None or event.id is None or not self.connects:
            return
        [lease] = [lease for lease in self._registry.read().entries if lease.id == event.id]
        match event.event:
            case "forwarded":
                host_ip = event.host_ip or ""
                for address in ("127.0.0.1", "::1") if host_ip == "127.0.0.1" else (host_ip,):
                    assert accepts(event.host_port, address), f"{address}:{event.host_port} refuses"
                assert (lease.state, lease.host_port) == ("bound", event.host_port)
                assert event.auto_forwarded
            case "waiting":
                assert not accepts(event.host_port), "a port that waits for its server accepted a connection"
                assert lease.state == "bound"
                assert not event.auto_forwarded
            case "unforwarded":
                assert event.host_port in self.foreign_ports or not accepts(event.host_port)
                assert lease.state == "reserved"
                assert not event.auto_forwarded

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    def take(self) -> list[tuple[str, int | None]]:
        """(event, container port) of what was published since the last call."""
        taken = [(event.event, event.container_port) for event in self.events]
        self.events.clear()
        return taken

    async def wait_for(self, name: str) -> PortEvent:
        """The first event of that name among those not taken yet; waits for it."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for event in self.events:
                    if event.event == name:
                        return event
                self._news.clear()
                await self._news.wait()


class Bench:
    """A state folder with everything that a session's services are made of. `close` at the end."""

    def __init__(self, folder: Path, notify: Callable[[PlaneEvent], None] = lambda _notice: None) -> None:
        self.paths = StatePaths(folder)
        self.paths.ensure()
        self.registry = Registry(self.paths, Recorder._complain)
        self.allocator = Allocator(
            BufferedRegistry(self.registry, Recorder._complain), current_process(), owners=lambda _ports: {}
        )
        self.publisher = Recorder(self.paths, self.registry)
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self.notify = notify
        self.plane = DataPlane(lambda notice: self.notify(notice))
        self.plane.start()

    def close(self) -> None:
        self.plane.stop()
        self.disk.shutdown()

    def leases(self) -> dict[int, Any]:
        """The registry's rows by container port."""
        return {lease.container_port: lease for lease in self.registry.read().entries}


class Table(Bench):
    """A forwarder; streams that its connections ask for are far ends in `far` where `carry` is set, else refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, self._answer)
        self.forwarder = Forwarder(Services(self.plane, self.allocator, self.publisher, self.disk), PLACE)
        self.carry = False
        self.far: list[socket.socket] = []
        self.streams: list[SocketStream] = []

    def _answer(self, notice: PlaneEvent) -> None:
        match notice:
            case StreamWanted(_, relay_id) if self.carry:
                ours, theirs = socket.socketpair()
                theirs.settimeout(10)
                stream = SocketStream(ours, b"", "exec")
                tool = netcat_tool(Netcat(("nc",), "busybox"))  # the one that is taken to be connected at once
                self.streams.append(stream)
                self.plane.submit(StreamReady(relay_id, stream, RelayPlan("ses", secrets.token_hex(16), tool, 1)))
                theirs.sendall(frame(b"AF pid 41\n", STDERR))  # as every relay begins
                self.far.append(theirs)
            case StreamWanted(_, relay_id):
                self.plane.submit(StreamFailed(relay_id, "nobody is there"))

    async def apply(self, rules: SessionRules, *container_ports: int, address: str = "127.0.0.1") -> Plan:
        """A snapshot with these listeners, none of them remembered from before."""
        return await self.apply_after({}, rules, *container_ports, address=address)

    async def apply_after(
        self,
        before: Mapping[ForwardKey, ObservedPort],
        rules: SessionRules,
        *container_ports: int,
        address: str = "127.0.0.1",
    ) -> Plan:
        """A snapshot with these listeners, after what was seen before."""
        snapshot = tuple(Listener("tcp", port, address) for port in sorted(container_ports))
        wanted = plan(rules, snapshot, before, 0.0)
        await self.forwarder.apply(wanted, LOOPBACK)
        return wanted

    def take(self) -> list[tuple[str, int | None]]:
        return self.publisher.take()

    def host_port(self, container_port: int) -> int:
        [row] = [row for row in self.forwarder.forwards if row.wanted.key.container_port == container_port]
        assert row.host_port is not None
        return row.host_port

    def rows(self) -> list[dict[str, Any]]:
        return list(self.forwarder.rows("web", "nc", {}))

    def close(self) -> None:
        for far in self.far:
            far.close()
        eventually(lambda: all(stream.fileno() < 0 for stream in self.streams), what="streams are closed")
        for row in self.forwarder.forwards:
            if row.pair is not None:
                row.pair.close()
        super().close()

"""The agent as a local child: what listens and whose it is, UDP, and names. Twice: plain, and with the sanitizers."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoforward.agent_protocol import decoder
from autoforward.agent_protocol.frames import SocketEntry
from autoforward.core.identity.network_namespace import own_namespace
from tests.support import agent_wire
from tests.support.agent_client import AgentClient
from tests.support.harness import free_port
from tests.support.local_fixtures import StartAgent

pytestmark = pytest.mark.local

LOOPBACK = "127.0.0.1"
POLL_MS = 100
ENOENT = 2


def listen(address: str, kind: socket.SocketKind = socket.SOCK_STREAM, port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def entry_of(sock: socket.socket) -> SocketEntry:
    address, port = sock.getsockname()[:2]
    transport = "tcp" if sock.type == socket.SOCK_STREAM else "udp"
    address = address.removeprefix("::ffff:")
    return SocketEntry(transport, port, address, os.getuid(), os.fstat(sock.fileno()).st_ino)  # type: ignore[arg-type]


def shown(agent: AgentClient, entry: SocketEntry) -> bool:
    return bool(agent.snapshots) and entry in agent.snapshots[-1].entries


@pytest.mark.parametrize("source", ["netlink", "proc"])
@pytest.mark.parametrize("address", [LOOPBACK, "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])
def test_a_listener_comes_and_goes(start: StartAgent, source: str, address: str) -> None:
    agent = start(*(["--no-netlink"] if source == "proc" else []))
    agent.send(decoder.encode_watch(POLL_MS))
    agent.wait(lambda: len(agent.snapshots) == 1, "the first snapshot")
    with listen(address) as sock:
        entry = entry_of(sock)
        agent.wait(lambda: shown(agent, entry), "the listener")
        agent.wait(lambda: entry.inode in agent.processes, "its process")
    process = agent.processes[entry.inode]
    assert process.pid == os.getpid()
    assert process.command_line == Path("/proc/self/cmdline").read_bytes().rstrip(b"\0")[:1024]
    agent.wait(lambda: not shown(agent, entry), "its end")


def test_snapshots_are_sorted_and_sent_when_something_changed(start: StartAgent) -> None:
    agent = start()
    agent.send(decoder.encode_watch(10))
    agent.wait(lambda: len(agent.snapshots) == 1, "the first snapshot")
    with listen(LOOPBACK) as first, listen("::1") as second:
        entries = [entry_of(first), entry_of(second)]
        agent.wait(lambda: all(shown(agent, entry) for entry in entries), "both")
        for _ in range(20):  # pings that take a turn each: many polls' time
            count = len(agent.pongs)
            agent.send(decoder.encode_ping(b"any news"))
            agent.wait(lambda count=count: len(agent.pongs) > count, "pong")  # type: ignore[misc]
            threading.Event().wait(0.01)
    for before, after in itertools.pairwise(agent.snapshots):
        assert before != after
    raw = [agent_wire.encode_snapshot([entry])[8:] for entry in agent.snapshots[-1].entries]
    assert raw == sorted(raw)


def test_agent_names_its_network_namespace_as_this_process_does(start: StartAgent) -> None:
    agent = start()
    for count in (1, 2):
        agent.send(decoder.encode_watch(10))
        agent.wait(lambda count=count: len(agent.snapshots) >= count, "a snapshot")  # type: ignore[misc]
    assert own_namespace()
    assert agent.networks == [own_namespace()] * 2


def test_watching_anew_tells_all_anew_and_0_stops(start: StartAgent) -> None:
    agent = start()
    with listen(LOOPBACK) as sock:
        for count in (1, 2):
            agent.processes.clear()
            agent.send(decoder.encode_watch(10))
            agent.wait(lambda count=count: len(agent.snapshots) >= count, "snapshot")  # type: ignore[misc]
            agent.wait(lambda: entry_of(sock).inode in agent.processes, "process")
    agent.send(decoder.encode_watch(0) + decoder.encode_ping(b"stopped?"))
    agent.wait(lambda: bool(agent.pongs), "pong")
    count = len(agent.snapshots)
    with listen(LOOPBACK) as sock:
        threading.Event().wait(0.2)
        agent.send(decoder.encode_ping(b"stopped!"))
        agent.wait(lambda: len(agent.pongs) == 2, "pong")
    assert len(agent.snapshots) == count


@pytest.mark.parametrize("source", ["netlink", "proc"])
def test_more_listeners_than_one_frame_holds(start: StartAgent, source: str) -> None:
    agent = start(*(["--no-netlink"] if source == "proc" else []))
    socks = [listen(f"127.0.{i // 200}.{i % 200 + 1}") for i in range(1500)]
    try:
        entries = {entry_of(sock) for sock in socks}
        agent.send(decoder.encode_watch(POLL_MS))
        agent.wait(lambda: bool(agent.snapshots) and entries <= set(agent.snapshots[-1].entries), "all")
        agent.wait(lambda: all(entry.inode in agent.processes for entry in entries), "processes")
        assert all(agent.processes[entry.inode].pid == os.getpid() for entry in entries)
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("source", ["netlink", "proc"])
@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_udp_sockets_are_shown_when_asked_for(start: StartAgent, source: str, address: str) -> None:
    agent = start(*(["--no-netlink"] if source == "proc" else []))
    with listen(address, socket.SOCK_DGRAM) as sock, listen(address, socket.SOCK_DGRAM) as client:
        client.connect(sock.getsockname()[:2])
        agent.send(decoder.encode_watch(POLL_MS))
        agent.wait(lambda: len(agent.snapshots) == 1, "the first snapshot")
        assert not any(entry.transport == "udp" for entry in agent.snapshots[0].entries)
        agent.send(decoder.encode_watch(POLL_MS, udp=True))
        agent.wait(lambda: shown(agent, entry_of(sock)), "the socket")
        assert not shown(agent, entry_of(client)), "a client's socket is connected"


# UDP.


def udp_echo(address: str) -> tuple[socket.socket, int]:
    sock = listen(address, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)

    def answer() -> None:
        with sock:
            while (got := sock.recvfrom(1 << 16))[0] != b"stop":
                sock.sendto(*got)

    threading.Thread(target=answer, daemon=True).start()
    return sock, sock.getsockname()[1]


def stop_echo(sock: socket.socket) -> None:
    with socket.socket(sock.family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"stop", sock.getsockname()[:2])


@pytest.mark.parametrize("address", [LOOPBACK, "::1"])
def test_datagrams_keep_their_boundaries(start: StartAgent, address: str) -> None:
    server, port = udp_echo(address)
    agent = start()
    try:
        clients = [agent.open(number, port, address, udp=True) for number in range(1, 4)]
        agent.wait(lambda: all(client.opened == 0 for client in clients), "openings")
        for size in (0, 1, 2, 512, 1472, 1473, 4096, 8999, 9000, 65_507):
            for client in clients:
                payload = bytes([client.number]) * size
                agent.send(decoder.encode_data(client.number, payload))
                agent.wait(lambda client=client: bool(client.datagrams), f"{size} bytes back")  # type: ignore[misc]
                assert client.datagrams == [payload]
                client.datagrams.clear()
    finally:
        stop_echo(server)


def test_many_datagrams_over_much_more_than_a_window(start: StartAgent) -> None:
    server, port = udp_echo(LOOPBACK)
    agent = start()
    try:
        client = agent.open(1, port, udp=True)
        agent.wait(lambda: client.opened == 0, "opening")
        sizes = [random.randint(1, 9000) for _ in range(400)]
        for size in sizes:
            agent.send(decoder.encode_data(1, bytes(size)))
            client.credit -= size
            agent.wait(lambda: bool(client.datagrams) and client.credit > 65_507, "the answer")
            assert len(client.datagrams.pop()) == size
    finally:
        stop_echo(server)


def test_datagrams_to_a_port_without_a_server_wait_for_one(start: StartAgent) -> None:
    """An unreachable port says nothing to the host; the server that comes later answers on the same stream."""
    port = free_port()  # none that the agent's own socket could be given meanwhile
    agent = start()
    client = agent.open(1, port, udp=True)
    agent.send(decoder.encode_data(1, b"too early") * 3 + decoder.encode_ping(b"01234567"))
    agent.wait(lambda: bool(agent.pongs), "pong")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((LOOPBACK, port))
        server.settimeout(10)
        agent.send(decoder.encode_data(1, b"now"))
        agent.wait(lambda: not agent.pending, "sending")
        data, peer = server.recvfrom(100)
        assert data == b"now"
        server.sendto(b"yes", peer)
        agent.wait(lambda: client.datagrams == [b"yes"], "answer")
    assert not client.over


def test_eof_of_a_udp_stream_is_answered(start: StartAgent) -> None:
    agent = start()
    with listen(LOOPBACK, socket.SOCK_DGRAM) as server:
        client = agent.open(1, server.getsockname()[1], udp=True)
        agent.send(decoder.encode_eof(1))
        agent.wait(lambda: client.eof, "end")
        assert client.opened == 0


# Names.


class NameServer:
    """A thread that answers A and AAAA queries from a table, and says nothing of what is not in it."""

    def __init__(
        self, table: dict[str, dict[int, list[str] | None]], address: str = LOOPBACK, port: int = 0, code: int = 0
    ) -> None:
        self.table = table
        self.code = code  # RFC 1035, RCODE: what every answer says
        self.sock = listen(address, socket.SOCK_DGRAM, port)
        self.port = self.sock.getsockname()[1]
        self.asked: list[tuple[str, int]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, peer = self.sock.recvfrom(1500)
            if query == b"stop":
                self.sock.close()
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            kind = struct.unpack_from(">H", query, at + 1)[0]
            name = ".".join(labels)
            self.asked.append((name, kind))
            found = self.table.get(name, {1: [], 28: []})[kind]
            if found is None:
                continue
            if self.code:
                self.sock.sendto(query[:2] + struct.pack(">HHHHH", 0x8180 | self.code, 1, 0, 0, 0) + query[12:], peer)
                continue
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            records = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, 4) + b"\1x\xc0\x0c"  # an alias comes first
            for text in found:
                packed = socket.inet_pton(family, text)
                records += b"\1x\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(packed)) + packed
            header = query[:2] + struct.pack(">HHHHH", 0x8180 if found else 0x8183, 1, len(found) + 1, 0, 0)
            self.sock.sendto(header + query[12 : at + 5] + records, peer)

    def close(self) -> None:
        stop_echo(self.sock)


@pytest.fixture
def named(start: StartAgent, tmp_path: Path) -> Iterator[tuple[AgentClient, NameServer]]:
    server = NameServer(
        {
            "both.example": {1: ["127.0.0.9", LOOPBACK], 28: ["::1"]},
            "six.example": {1: [], 28: ["::1"]},
            "half": {1: [LOOPBACK], 28: None},
            "mute": {1: None, 28: None},
        }
    )
    hosts, resolv = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("# a comment\n127.0.0.1 db.local\tDB # db2\n::1 six.local db\n\n10.9.8.7x broken\n127.0.0.1 last")
    resolv.write_text(f"search example\noptions ndots:0\nnameserver {LOOPBACK}\nnameserver 127.0.0.53\n")
    yield start("--hosts", str(hosts), "--resolv", str(resolv), "--dns-port", str(server.port)), server
    server.close()


@pytest.mark.parametrize(
    ("name", "listening"),
    [
        ("db", LOOPBACK),
        ("db", "::1"),
        ("six.local", "::1"),
        ("last", LOOPBACK),
        ("localhost", "::1"),
        ("both.example", LOOPBACK),
        ("both.example", "::1"),
        ("six.example", "::1"),
        ("half", LOOPBACK),
    ],
)
def test_names_are_dialled(named: tuple[AgentClient, NameServer], name: str, listening: str) -> None:
    agent, server = named
    with listen(listening) as sock:
        stream = agent.open(1, sock.getsockname()[1], name)
        agent.upload(stream, b"early")
        agent.wait(lambda: stream.opened == 0, "opening")
        connection, _ = sock.accept()
        with connection:
            assert connection.recv(100) == b"early"
    assert bool(server.asked) == (name in server.table)


SILENT, SERVFAIL, REFUSED = {1: None, 28: None}, 2, 5


@pytest.mark.parametrize("first", ["not there", "silent", SERVFAIL, REFUSED])
def test_another_nameserver_is_asked_when_the_first_is_of_no_use(
    start: StartAgent, tmp_path: Path, first: str | int
) -> None:
    """Seen: the container's own resolver answered in 0.2 s, the agent said that there is no such host."""
    good = NameServer({"db": {1: [LOOPBACK], 28: []}})
    servers = [good]
    if first != "not there":
        table = {"db": SILENT if first == "silent" else {1: [], 28: []}}
        servers.append(NameServer(table, "127.0.0.9", good.port, code=first if isinstance(first, int) else 0))
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver 127.0.0.9\nnameserver {LOOPBACK}\n")
    agent = start("--hosts", "/dev/null", "--resolv", str(resolv), "--dns-port", str(good.port))
    with listen(LOOPBACK) as sock:
        stream = agent.open(1, sock.getsockname()[1], "db")
        agent.wait(lambda: stream.opened == 0 or stream.refused is not None, "an answer")
        assert stream.opened == 0
    for server in servers:
        server.close()


@pytest.mark.parametrize("name", ["db2", "broken", "nowhere", "mute", "a..b", "x" * 64, ".".join(["a" * 62] * 4)])
def test_names_that_are_not_known(named: tuple[AgentClient, NameServer], name: str) -> None:
    agent, _ = named
    stream = agent.open(1, 80, name)
    agent.wait(lambda: stream.refused is not None, "refusal")
    assert stream.refused == ENOENT


def test_a_name_that_is_not_known_is_not_the_last_word(named: tuple[AgentClient, NameServer]) -> None:
    agent, _ = named
    with listen(LOOPBACK) as sock:
        stream = agent.open(1, sock.getsockname()[1], "nowhere", LOOPBACK)
        agent.wait(lambda: stream.opened == 1, "opening of the second")


@pytest.mark.parametrize("name", ["last", "half"])
def test_datagrams_wait_for_the_name(named: tuple[AgentClient, NameServer], name: str) -> None:
    agent, _ = named
    with listen(LOOPBACK, socket.SOCK_DGRAM) as server:
        server.settimeout(10)
        client = agent.open(1, server.getsockname()[1], name, udp=True)
        datagrams = [b"first", b"", bytes(9000), b"last"]
        for datagram in datagrams:
            agent.send(decoder.encode_data(1, datagram))
        agent.wait(lambda: client.opened == 0, "opening")
        assert [server.recv(1 << 16) for _ in datagrams] == datagrams

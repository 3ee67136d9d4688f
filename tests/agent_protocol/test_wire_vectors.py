"""The protocol's bytes, the same for both ends: every vector runs against `decoder.py` and against agent/wire.c.

Each message whole, byte by byte, and with a tail; each malformed one is an error in both.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.agent_protocol import decoder as wire
from autoforward.agent_protocol import frames
from autoforward.agent_protocol.frames import Data, Hello, Ping, SocketEntry
from autoforward.core.errors import ProtocolError
from tests.support import agent_wire
from tests.support.agent_build import build
from tests.support.agent_wire import Event

pytestmark = pytest.mark.unit

_VECTORS = json.loads((Path(__file__).parent / "wire_vectors.json").read_text())
_HELLO = wire.encode_hello(262_144)
_TAIL = wire.encode_ping(b"the tail")

HELLOS = [pytest.param(vector, id=vector["name"]) for vector in _VECTORS["hellos"]]
FRAMES = [pytest.param(vector, id=f"{vector['name']}, to {vector['to']}") for vector in _VECTORS["frames"]]
GOOD = [param for param in FRAMES if "error" not in param.values[0]]
BAD = [param for param in FRAMES if "error" in param.values[0]]
TO_AGENT = [param for param in FRAMES if param.values[0]["to"].startswith("agent")]
TO_HOST = [param for param in GOOD if param.values[0]["to"].startswith("host")]

_BYTES = ("payload", "command_line", "secret", "token", "tag", "namespace")
_TRANSPORTS = {"tcp": 6, "udp": 17}


def event_of(row: Sequence[Any]) -> Event:
    """An event from its JSON: the name of its class, then its fields, bytes in hexadecimal."""
    kind = getattr(frames, row[0], None) or getattr(agent_wire, row[0])
    values: list[Any] = []
    for name, value in zip(kind._fields, row[1:], strict=True):
        if name in _BYTES:
            values.append(bytes.fromhex(value))
        elif name == "entries":
            values.append(tuple(SocketEntry(*entry) for entry in value))
        else:
            values.append(tuple(value) if isinstance(value, list) else value)
    return kind(*values)  # type: ignore[no-any-return]


def joined(events: Sequence[Event]) -> list[Event]:
    """Parts of one DATA frame put together, as they would have come whole."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, Data) and result and isinstance(result[-1], Data) and not result[-1].last:
            event = Data(event.stream, result.pop().payload + event.payload, event.last)  # type: ignore[union-attr]
        result.append(event)
    return result


def tail_of(role: agent_wire.Role) -> bytes:
    """A frame that may follow any other there."""
    return wire.encode_pong(b"the tail") if role == "host-trunk" else _TAIL


def decode(role: agent_wire.Role, pieces: Sequence[bytes]) -> list[Event]:
    """After a hello, but on a trunk, where there is none."""
    decoder = agent_wire.Decoder(role)
    if not role.endswith("-trunk"):
        assert isinstance(decoder.feed(_HELLO)[0], Hello)
    return joined([event for piece in pieces for event in decoder.feed(piece)])


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@dataclass
class Checker:
    """agent/checks/wire_check.c as a child."""

    process: subprocess.Popen[str]
    closed: bool = field(default=False, init=False)

    def ask(self, line: str) -> str:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def decode(self, pieces: Sequence[bytes], how: str = "decode") -> tuple[list[str], str]:
        """Lines of events (parts of DATA joined) and the last line: `ok` or `error …`."""
        assert self.process.stdout
        line = self.ask(f"{how} " + " ".join(piece.hex() for piece in pieces if piece))
        events: list[str] = []
        partial = ""
        while not line.startswith(("ok", "error")):
            kind, stream, value, udp, last, payload = (line + " ").split(" ")[:6]
            if kind == "4":
                payload = partial + payload
                partial = payload if last == "0" else ""
            if last == "1":
                events.append(f"{kind} {stream} {value} {udp} {payload}")
            line = self.process.stdout.readline().strip()
        return events, line


@pytest.fixture(scope="module", params=["wire-check", "wire-check-asan"])
def checker(request: pytest.FixtureRequest) -> Iterator[Checker]:
    with subprocess.Popen([build(request.param)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Checker(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("vector", GOOD)
def test_host_decodes(vector: dict[str, Any]) -> None:
    role, data = vector["to"], bytes.fromhex(vector["bytes"])
    events, tail = [event_of(row) for row in vector["events"]], tail_of(role)
    [last] = decode(role, [tail])
    assert decode(role, [data]) == events
    assert decode(role, single_bytes(data)) == events
    assert decode(role, [data + tail]) == [*events, last]
    for cut in range(1, min(len(data), 64)):
        assert decode(role, [data[:cut], data[cut:] + tail]) == [*events, last]


@pytest.mark.parametrize("vector", BAD)
def test_host_refuses(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"]) + tail_of(vector["to"]) * 20
    for pieces in ([data], single_bytes(data)):
        with pytest.raises(ProtocolError):
            decode(vector["to"], pieces)


@pytest.mark.parametrize("vector", HELLOS)
def test_host_greets(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    for pieces in ([data], single_bytes(data), [data + _TAIL]):
        decoder = agent_wire.Decoder("host")
        if "error" in vector:
            with pytest.raises(ProtocolError):
                for piece in pieces:
                    decoder.feed(piece)
        else:
            events = [event for piece in pieces for event in decoder.feed(piece)]
            assert events[0] == Hello(vector["window"])
            assert decoder.between_frames


@pytest.mark.parametrize("vector", TO_AGENT)
def test_agent_decodes(checker: Checker, vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    expected = [c_line(event_of(row)) for row in vector.get("events", [])]
    tail = c_line(Ping(b"the tail"))
    trunk = vector["to"] == "agent-trunk"
    how, hello, greeted = ("decode-trunk", b"", []) if trunk else ("decode", _HELLO, ["0 0 262144 0 "])
    for pieces, events in (
        ([hello, data], expected),
        ([hello, *single_bytes(data)], expected),
        ([hello + data + _TAIL], [*expected, tail]),
        ([hello[:5], hello[5:] + data[:3], data[3:] + _TAIL], [*expected, tail]),
    ):
        if "error" in vector:
            assert checker.decode([*pieces, _TAIL * 20], how)[1].startswith("error ")
        else:
            assert checker.decode(pieces, how) == ([*greeted, *events], "ok")


@pytest.mark.parametrize("vector", HELLOS)
def test_agent_greets(checker: Checker, vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    for pieces in ([data], single_bytes(data)):
        events, end = checker.decode(pieces)
        if "error" in vector:
            assert events == []
            assert end.startswith("error ")
        else:
            assert (events, end) == ([f"0 0 {vector['window']} 0 "], "ok")
            assert checker.ask(f"hello {vector['window']}") == vector["bytes"]


@pytest.mark.parametrize("vector", TO_HOST)
def test_agent_encodes(checker: Checker, vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    entries = [entry for row in vector["events"] if row[0] == "SnapshotEvent" for entry in row[1]]
    at = 0
    while at < len(data):
        size, stream = int.from_bytes(data[at + 2 : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")
        assert checker.ask(f"header {data[at]} {data[at + 1]} {size} {stream}") == data[at : at + 8].hex()
        if data[at] == frames.SNAPSHOT:
            for row in range(at + 8, at + 8 + size, frames.ENTRY_SIZE):
                assert c_entry(checker, entries.pop(0)) == data[row : row + frames.ENTRY_SIZE].hex()
        at += 8 + size
    assert not entries


def c_entry(checker: Checker, entry: Sequence[Any]) -> str:
    transport, port, text, uid, inode = entry
    address = ipaddress.ip_address(text)
    line = f"entry {_TRANSPORTS[transport]} {address.version} {port} {uid} {inode} {address.packed.hex()}"
    return checker.ask(line)


def c_line(event: Event) -> str:
    """The line that wire_check prints of this event."""
    match event:
        case agent_wire.Open():
            payload = agent_wire.encode_open(event.stream, event.transport, event.port, event.addresses)[8:]
            return f"1 {event.stream} 0 0 {payload.hex()}"
        case agent_wire.SignedOpen():
            return f"19 {event.stream} 0 0 {signed_open(event)[8:].hex()}"
        case agent_wire.Trunk():
            return f"18 0 0 0 {event.token.hex()}"
        case frames.Data():
            return f"4 {event.stream} 0 0 {event.payload.hex()}"
        case frames.Eof():
            return f"5 {event.stream} 0 0 "
        case frames.Reset():
            return f"6 {event.stream} {event.errno} 0 {event.errno:08x}"
        case frames.Credit():
            return f"7 {event.stream} {event.size} 0 {event.size:08x}"
        case frames.Ping():
            return f"8 0 0 0 {event.payload.hex()}"
        case frames.Pong():
            return f"9 0 0 0 {event.payload.hex()}"
        case agent_wire.Watch():
            return f"10 0 {event.interval_ms} {int(event.udp)} {event.interval_ms:08x}{int(event.udp):02x}"
        case agent_wire.Listen():
            return f"14 0 0 0 {wire.encode_listen(event.secret, event.address)[8:].hex()}"
        case agent_wire.Direct():
            return f"16 {event.stream} 0 0 {event.token.hex()}"
        case frames.Move():
            return f"17 {event.stream} 0 0 "
    raise AssertionError(event)


def signed_open(event: agent_wire.SignedOpen) -> bytes:
    payload = wire.open_payload(event.transport, event.port, event.addresses)
    return wire.encode_signed_open(event.stream, event.tag, payload)


def test_frames_of_direct_connections_are_encoded_as_decoded() -> None:
    again: list[bytes] = []
    for vector in (param.values[0] for param in GOOD):
        for event in (event_of(row) for row in vector["events"]):
            match event:
                case agent_wire.Listen():
                    again.append(wire.encode_listen(*event))
                case frames.Listening():
                    again.append(agent_wire.encode_listening(*event))
                case agent_wire.Direct():
                    again.append(wire.encode_direct(*event))
                case frames.Move():
                    again.append(wire.encode_move(*event))
                case agent_wire.Trunk():
                    again.append(wire.encode_trunk(*event))
                case agent_wire.SignedOpen():
                    again.append(signed_open(event))
                case frames.Network():
                    again.append(agent_wire.encode_network(*event))
                case _:
                    continue
            assert again[-1].hex() in vector["bytes"]
    assert {frame[0] for frame in again} == set(range(frames.LISTEN, frames.NETWORK + 1))


def test_a_snapshot_is_bounded_over_its_frames() -> None:
    entry = SocketEntry("tcp", 3000, "127.0.0.1", 0, 1)
    full = agent_wire.encode_snapshot([entry] * 1024, more=True)
    decoder = wire.Decoder()
    decoder.feed(_HELLO + full * 4)
    with pytest.raises(ProtocolError, match="4096"):
        decoder.feed(agent_wire.encode_snapshot([entry]))


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=8), st.sampled_from(sorted(agent_wire.RULES)))
def test_any_bytes_cut_anywhere_mean_the_same(data: bytes, cuts: list[int], role: agent_wire.Role) -> None:
    """Events, or ProtocolError and nothing else."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert outcome(role, pieces) == outcome(role, [data])


def outcome(role: agent_wire.Role, pieces: Sequence[bytes]) -> list[Event] | None:
    try:
        events = decode(role, pieces)
    except ProtocolError:
        return None
    return [Data(e.stream, e.payload, False) if isinstance(e, Data) else e for e in events]


def test_encoder_refuses_invalid_values() -> None:
    for bad in (0, 1 << 32):
        with pytest.raises(ValueError, match="stream"):
            agent_wire.encode_open(bad, "tcp", 80, ["127.0.0.1"])
    with pytest.raises(ValueError, match="address"):
        agent_wire.encode_open(1, "tcp", 80, [])
    with pytest.raises(ValueError, match="254"):
        agent_wire.encode_open(1, "tcp", 80, ["a" * 254])
    with pytest.raises(ValueError, match="window"):
        wire.encode_hello(1)
    with pytest.raises(ValueError, match="db"):
        wire.encode_listen(bytes(16), "db")
    with pytest.raises(ValueError, match="15 bytes"):
        wire.encode_listen(bytes(15), "127.0.0.1")
    with pytest.raises(ValueError, match="17 bytes"):
        wire.encode_direct(1, bytes(17))
    with pytest.raises(ValueError, match="15 bytes"):
        wire.encode_trunk(bytes(15))

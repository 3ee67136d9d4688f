"""SPEC.md's "Agent protocol" is the only description: its frames and limits against both ends, `frames.py` and the C."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from autoforward.agent_protocol import frames
from autoforward.dataplane.mux import handshake
from autoforward.dataplane.mux.stream import WINDOW_BYTES
from autoforward.lanes import agent_install
from tests.support import agent_wire
from tests.support.spec_text import ROOT, section, table, ticked

pytestmark = pytest.mark.unit


@cache
def in_c() -> dict[str, int]:
    """The numbers that the agent's source gives a name, as `file.NAME` and, where that is one thing, as `NAME`."""
    found: dict[str, int] = {}
    for path in sorted([*(ROOT / "agent").glob("*.c"), *(ROOT / "agent").glob("*.h")]):
        for body in re.findall(
            r"\benum \w*\s*\{(.*?)\}", re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL), re.DOTALL
        ):
            for name, value in re.findall(r"(\w+) = ([\w ]+(?:<<|\*)? ?\w*)", body):
                numbers = [int(number, 0) for number in re.findall(r"\b(?:0x[0-9a-f]+|\d+)\b", value)]
                if not numbers or re.search(r"[A-Z_]{2,}", value):
                    continue
                number = numbers[0]
                for other in numbers[1:]:
                    number = number << other if "<<" in value else number * other
                found[f"{path.stem}.{name}"] = number
                found.setdefault(name, number)
    return found


def prose(title: str = "Agent protocol") -> str:
    return " ".join(section(title).split())


def payload(name: str) -> str:
    return next(row[3] for row in table("Frames", "type") if row[1] == name)


# Frames.


def test_numbers_and_names_of_the_frames() -> None:
    rows = [(int(row[0]), row[1]) for row in table("Frames", "type")]
    assert rows == [(getattr(frames, name), name) for _, name in rows]
    assert {number for number, _ in rows} == {frames.DATA}.union(*agent_wire.RULES.values())
    header = re.search(r"OPEN = 1,(.*?)\};", (ROOT / "agent/wire.h").read_text(), re.DOTALL)
    assert header
    in_header = ["OPEN", *re.findall(r"\w+", header[1])]
    assert [{"END": "EOF"}.get(name, name) for name in in_header] == [name for _, name in rows]


def test_senders_of_the_frames() -> None:
    for row in table("Frames", "type"):
        number, way = int(row[0]), row[2]
        if number == frames.DATA:  # passed on in parts, so without a rule of its own
            assert way == "both"
            continue
        readers = {role.removesuffix("-trunk") for role, rules in agent_wire.RULES.items() if number in rules}
        assert readers == {"both": {"agent", "host"}, "→ agent": {"agent"}, "→ host": {"host"}}[way], row[1]


def test_frames_of_a_trunk() -> None:
    """Of the exec stream's frames only those of streams, and a ping one way; what opens is another."""
    agent, host = agent_wire.RULES["agent-trunk"], agent_wire.RULES["host-trunk"]
    both = {frames.EOF, frames.RESET, frames.CREDIT, frames.MOVE}
    assert set(agent) == both | {frames.SIGNED_OPEN, frames.PING}
    assert set(host) == both | {frames.OPENED, frames.REFUSED, frames.PONG}
    for trunk, exec_stream in ((agent, agent_wire.RULES["agent"]), (host, agent_wire.RULES["host"])):
        assert all(exec_stream[number] == rule for number, rule in trunk.items() if number != frames.SIGNED_OPEN)


def test_frames_of_a_stream() -> None:
    assert "OPEN to CREDIT, DIRECT, MOVE and SIGNED_OPEN are of a stream, all others are of stream 0" in prose()
    of_stream = {*range(frames.OPEN, frames.CREDIT + 1), frames.DIRECT, frames.MOVE, frames.SIGNED_OPEN}
    for rules in agent_wire.RULES.values():
        assert all(rule.of_stream == (number in of_stream) for number, rule in rules.items())


def test_flags_are_those_of_a_snapshot() -> None:
    assert "Flags are 0 but for SNAPSHOT" in prose()
    flagged = {
        number: rule.flags for rules in agent_wire.RULES.values() for number, rule in rules.items() if rule.flags
    }
    assert flagged == {frames.SNAPSHOT: 1 << 0 | 1 << 1}
    assert "bit 0 set when more frames" in payload("SNAPSHOT")
    assert "flag bit 1 says that there were more" in prose()
    assert (frames.SNAPSHOT_MORE, frames.SNAPSHOT_CUT) == (1 << 0, 1 << 1)


def fields(text: str) -> int:
    """The sum of the sizes in brackets after the names of a frame's fields."""
    return sum(int(size) for size in re.findall(r"(?:^|· )(?:[a-z ]+) \((\d+)\)", text))


def test_sizes_of_the_frames() -> None:
    host, agent = agent_wire.RULES["host"], agent_wire.RULES["agent"]
    assert fields(payload("OPENED")) == host[frames.OPENED].max_size
    assert fields(payload("REFUSED")) == host[frames.REFUSED].max_size
    assert fields(payload("RESET")) == agent[frames.RESET].max_size
    assert fields(payload("CREDIT")) == agent[frames.CREDIT].max_size
    assert payload("PING").startswith(f"{agent[frames.PING].max_size} bytes")
    assert payload("PONG").startswith(f"the {agent[frames.PONG].max_size} bytes")
    assert re.findall(r"\((\d)\)", payload("WATCH")) == ["4", "1"]
    assert agent[frames.WATCH].max_size == 4 + 1
    assert fields(payload("PROCESS")) + frames.MAX_COMMAND == host[frames.PROCESS].max_size
    assert fields(payload("BYE")) + frames.MAX_BYE_TEXT == host[frames.BYE].max_size
    assert "address (4 or 16 bytes)" in payload("LISTEN")
    assert "or none" in payload("LISTEN")
    assert agent[frames.LISTEN].min_size == 0
    assert fields(payload("LISTEN")) + 16 == agent[frames.LISTEN].max_size
    assert fields(payload("LISTENING")) == host[frames.LISTENING].max_size
    assert fields(payload("DIRECT")) == agent[frames.DIRECT].max_size
    assert fields(payload("TRUNK")) == agent[frames.TRUNK].max_size
    signed = agent_wire.RULES["agent-trunk"][frames.SIGNED_OPEN]
    assert fields(payload("SIGNED_OPEN")) == frames.TAG_SIZE
    least, most = signed.min_size - frames.TAG_SIZE, signed.max_size - frames.TAG_SIZE
    assert f"what OPEN has, {least} to {most} bytes" in payload("SIGNED_OPEN")
    assert f"MAX_SIGNED_OPEN = TAG_SIZE + {most}," in (ROOT / "agent/wire.h").read_text()


def test_hello() -> None:
    rows = table("Hello, both ways", "bytes")
    assert sum(int(row[0]) for row in rows) == frames.HELLO_SIZE
    assert bytes.fromhex(ticked(rows[0][1])[0].replace(" ", "")) == frames.MAGIC
    assert rows[1][1] == f"version, {frames.VERSION}"
    assert f"Version {frames.VERSION}." in prose()
    assert f"{frames.MIN_WINDOW:,} to {frames.MAX_WINDOW:,}" in rows[3][1]
    assert f"(the agent's: {in_c()['WINDOW']:,}, the host's: {WINDOW_BYTES:,})" in rows[3][1]


# Limits.

HOST: dict[str, tuple[Any, str]] = {
    "HEADER_SIZE": (frames.HEADER_SIZE, "Header, {} bytes"),
    "MAX_PAYLOAD": (frames.MAX_PAYLOAD, "Payload at most {} bytes"),
    "MAX_ADDRESSES": (frames.MAX_ADDRESSES, "number of addresses (1), 1 to {} ·"),
    "MAX_NAME": (frames.MAX_NAME, "length (1): 4, 16, or 1 to {} ·"),
    "MAX_ERRNO": (frames.MAX_ERRNO, "errno (4), at most {}, 0 when unknown"),
    "ENTRY_SIZE": (frames.ENTRY_SIZE, "SNAPSHOT entry, {} bytes"),
    "MAX_ENTRIES": (frames.MAX_ENTRIES, "At most {} entries over all frames"),
    "MAX_COMMAND": (frames.MAX_COMMAND, "cut to {} bytes"),
    "MAX_STREAMS": (frames.MAX_STREAMS, "At most {} streams"),
    "TAG_SIZE": (frames.TAG_SIZE, "Its tag is the first {} bytes of"),
    "MAX_DATAGRAM": (frames.MAX_DATAGRAM, "while the credit is at least {}."),
}
"""What both ends hold: the host's value, and where the text says it."""


@pytest.mark.parametrize("name", HOST)
def test_limits_of_both_ends(name: str) -> None:
    value, phrase = HOST[name]
    assert in_c()[name] == value
    assert phrase.format(f"{value:,}") in prose()


def test_credit_is_bounded() -> None:
    assert in_c()["MAX_CREDIT"] == frames.MAX_CREDIT == 2**31 - 1
    assert payload("CREDIT").startswith("bytes (4), 1 to 2^31 - 1,")
    assert frames.MAX_STREAM == 2**32 - 1
    assert "not reused within 2^32 - 1 opens" in prose()


AGENT = {
    "main.SILENCE_MS": (1000, ["So do {} s without a byte", "2 nothing heard for {} s"]),
    "main.FAREWELL_MS": (1, ["as far as stdout takes it within {} ms"]),
    "main.EXIT_USAGE": (1, ["(exit {}, nothing on stdout", "Wrong use: exit {}."]),
    "main.EXIT_PROTOCOL": (1, ["with BYE and exit {})"]),
    "main.EXIT_SILENCE": (1, ["from the host (exit {})"]),
    "agent.PATH_RING": (1024, ["output buffer (bounded: {} KiB)"]),
    "sys.POOL_LIMIT": (1 << 20, ["and {} MiB over all streams"]),
    "streams.TURN": (1024, ["gives at most {} KiB in its turn"]),
    "dial.CONNECT_MS": (1000, ["come about within {} s"]),
    "dial.DNS_MS": (1000, ["the last has {} s"]),
    "dial.NEXT_NAMESERVER_MS": (1000, ["or is silent for {} s"]),
    "dial.DNS_SECOND_ANSWER_MS": (1, ["the other has {} ms more"]),
    "streams.UDP_IDLE_MS": (1000, ["{} s without a datagram either way"]),
    "streams.CONNECTIONS": (1, ["or {} streams have a direct connection"]),
    "streams.GREETINGS": (1, ["At most {} are looked at at a time"]),
    "listener.BAD_BURST": (1, ["It accepts {} such at once"]),
    "listener.BAD_MS": (1, ["one more each {} ms"]),
    "listener.CROWDED_MS": (1, ["they have {} ms more"]),
    "listener.ACCEPT_PAUSE_MS": (1000, ["it tries again after {} s"]),
    "listener.GREETING_MS": (1000, ["not there within {} s"]),
    "streams.LEAVE_MS": (1000, ["closed by the agent {} s later", "within {} s, is given up"]),
    "detect.PROC_BASE_MS": (1, ["at most {} ms, if the interval"]),
    "detect.PROC_LIMIT_MS": (1000, ["down to every {} s"]),
}
"""What is the agent's alone: the unit, and where the text says it."""


@pytest.mark.parametrize("name", AGENT)
def test_limits_of_the_agent(name: str) -> None:
    unit, phrases = AGENT[name]
    value, rest = divmod(in_c()[name], unit)
    assert not rest
    for phrase in phrases:
        assert phrase.format(value) in prose()


def test_decoder_of_a_trunk_takes_its_frames_alone() -> None:
    said = re.search(r"To the agent go ([\w, ]+); to the host ([\w, ]+)\.", prose("Trunk"))
    assert said
    to_agent, to_host = ({getattr(frames, name) for name in re.findall(r"[A-Z_]+", names)} for names in said.groups())
    assert to_agent == {frames.DATA, *agent_wire.RULES["agent-trunk"]}
    assert to_host == {frames.DATA, *agent_wire.RULES["host-trunk"]}


def test_signed_bytes_begin_with_the_same_text() -> None:
    for words, source in (
        (handshake.HOST_WORDS, "listener.c"),
        (handshake.AGENT_WORDS, "listener.c"),
        (handshake.TRUNK_WORDS, "trunk.c"),
    ):
        assert f'"{words.decode()}"' in (ROOT / "agent" / source).read_text()
        assert f'"{words.decode()}" + token' in prose()


def test_reasons_of_bye() -> None:
    words = {"stdin ended": "stdin ended", "silence": "nothing heard for", "protocol error": "protocol error"}
    for number, reason in enumerate(frames.BYE_REASONS, 1):
        assert f"{number} {words[reason]}" in payload("BYE")


def test_protocol_is_described_in_its_section_alone() -> None:
    pointer = (ROOT / "agent/PROTOCOL.md").read_text(encoding="utf-8")
    assert "(../SPEC.md#agent-protocol)" in pointer
    assert "|" not in pointer, "a second table would soon be another one"


# Where it lies in the container.


def test_the_agents_place_and_name() -> None:
    text = prose("Agent")
    assert f"`{agent_install.FOLDER}/agent-HASH`" in text
    assert f"mode {agent_install.MODE:04o}" in text

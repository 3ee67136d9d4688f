"""SPEC.md's "Agent protocol" is the only description: its frames and limits against both ends, `frames.py` and the C."""

from __future__ import annotations

import re
from functools import cache

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


def frame_rows() -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in table("Frames", "type")]


COLUMNS = ("type", "name", "exec stream", "trunk", "stream", "payload")


def payload(name: str) -> str:
    return next(row["payload"] for row in frame_rows() if row["name"] == name)


# Frames.


def test_numbers_and_names_of_the_frames() -> None:
    rows = [(int(row["type"]), row["name"]) for row in frame_rows()]
    assert rows == [(getattr(frames, name), name) for _, name in rows]
    assert {number for number, _ in rows} == {frames.DATA}.union(*agent_wire.RULES.values())
    header = re.search(r"OPEN = 1,(.*?)\};", (ROOT / "agent/wire.h").read_text(), re.DOTALL)
    assert header
    in_header = ["OPEN", *re.findall(r"\w+", header[1])]
    assert [{"END": "EOF"}.get(name, name) for name in in_header] == [name for _, name in rows]


READERS = {"both": {"agent", "host"}, "→ agent": {"agent"}, "→ host": {"host"}, "no": set[str]()}


@pytest.mark.parametrize(("column", "suffix"), [("exec stream", ""), ("trunk", "-trunk")])
def test_senders_of_the_frames(column: str, suffix: str) -> None:
    for row in frame_rows():
        number = int(row["type"])
        if number == frames.DATA:  # passed on in parts, so without a rule of its own
            assert row[column] == "both"
            continue
        readers = {role for role in ("agent", "host") if number in agent_wire.RULES[f"{role}{suffix}"]}  # type: ignore[index]
        assert readers == READERS[row[column]], row["name"]


def test_frames_of_a_trunk_have_the_rules_of_the_exec_stream() -> None:
    agent, host = agent_wire.RULES["agent-trunk"], agent_wire.RULES["host-trunk"]
    for trunk, exec_stream in ((agent, agent_wire.RULES["agent"]), (host, agent_wire.RULES["host"])):
        assert all(exec_stream[number] == rule for number, rule in trunk.items() if number != frames.SIGNED_OPEN)


def test_frames_of_a_stream() -> None:
    of_stream = {int(row["type"]) for row in frame_rows() if row["stream"] == "n"}
    assert {row["stream"] for row in frame_rows()} == {"n", "0"}
    for rules in agent_wire.RULES.values():
        assert all(rule.of_stream == (number in of_stream) for number, rule in rules.items())


def test_flags_are_those_of_a_snapshot() -> None:
    flagged = {
        number: rule.flags for rules in agent_wire.RULES.values() for number, rule in rules.items() if rule.flags
    }
    assert flagged == {frames.SNAPSHOT: frames.SNAPSHOT_MORE | frames.SNAPSHOT_CUT}
    flags = [int(row[0]) for row in table("Frames", "flag of SNAPSHOT")]
    assert flags == [frames.SNAPSHOT_MORE, frames.SNAPSHOT_CUT]


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
    assert agent[frames.LISTEN].min_size == 0
    assert fields(payload("LISTEN")) + 16 == agent[frames.LISTEN].max_size
    assert fields(payload("LISTENING")) == host[frames.LISTENING].max_size
    assert fields(payload("DIRECT")) == agent[frames.DIRECT].max_size
    assert fields(payload("TRUNK")) == agent[frames.TRUNK].max_size
    signed = agent_wire.RULES["agent-trunk"][frames.SIGNED_OPEN]
    assert fields(payload("SIGNED_OPEN")) == frames.TAG_SIZE
    least, most = signed.min_size - frames.TAG_SIZE, signed.max_size - frames.TAG_SIZE
    assert re.findall(r"(\d+) to (\d+) bytes", payload("SIGNED_OPEN")) == [(str(least), str(most))]
    assert f"MAX_SIGNED_OPEN = TAG_SIZE + {most}," in (ROOT / "agent/wire.h").read_text()


def test_hello() -> None:
    rows = table("Hello, both ways", "bytes")
    assert sum(int(row[0]) for row in rows) == frames.HELLO_SIZE
    assert bytes.fromhex(ticked(rows[0][1])[0].replace(" ", "")) == frames.MAGIC
    assert rows[1][1] == f"version, {frames.VERSION}"
    assert f"{frames.MIN_WINDOW:,} to {frames.MAX_WINDOW:,}" in rows[3][1]
    assert f"(the agent's: {in_c()['WINDOW']:,}, the host's: {WINDOW_BYTES:,})" in rows[3][1]


# Numbers.

UNITS = {"": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "ms": 1, "s": 1000}
"""Of the table; times are in ms in the agent's source."""

BOTH: dict[str, tuple[str, int]] = {
    "bytes of a frame's header": ("HEADER_SIZE", frames.HEADER_SIZE),
    "highest payload of a frame": ("MAX_PAYLOAD", frames.MAX_PAYLOAD),
    "addresses of an OPEN": ("MAX_ADDRESSES", frames.MAX_ADDRESSES),
    "bytes of a name": ("MAX_NAME", frames.MAX_NAME),
    "highest errno": ("MAX_ERRNO", frames.MAX_ERRNO),
    "bytes of an entry of a snapshot": ("ENTRY_SIZE", frames.ENTRY_SIZE),
    "entries of a snapshot": ("MAX_ENTRIES", frames.MAX_ENTRIES),
    "bytes of a command line": ("MAX_COMMAND", frames.MAX_COMMAND),
    "streams at once": ("MAX_STREAMS", frames.MAX_STREAMS),
    "bytes of a tag": ("TAG_SIZE", frames.TAG_SIZE),
    "bytes of a datagram": ("MAX_DATAGRAM", frames.MAX_DATAGRAM),
    "lowest window": ("MIN_WINDOW", frames.MIN_WINDOW),
    "highest window": ("MAX_WINDOW", frames.MAX_WINDOW),
    "highest credit": ("MAX_CREDIT", frames.MAX_CREDIT),
}
"""Kept by both ends: the name in the agent's source, and the host's value."""

AGENT = {
    "silence of the host, then the agent ends": "main.SILENCE_MS",
    "time for stdout to take BYE": "main.FAREWELL_MS",
    "exit code of wrong use": "main.EXIT_USAGE",
    "exit code of a protocol error": "main.EXIT_PROTOCOL",
    "exit code of silence": "main.EXIT_SILENCE",
    "output buffer of a path": "agent.PATH_RING",
    "bytes kept for all servers": "sys.POOL_LIMIT",
    "bytes of a stream in its turn": "streams.TURN",
    "time to connect to an address": "dial.CONNECT_MS",
    "time for the last nameserver": "dial.DNS_MS",
    "time for a nameserver before it": "dial.NEXT_NAMESERVER_MS",
    "time for the second kind of address": "dial.DNS_SECOND_ANSWER_MS",
    "time without a datagram, then a stream ends": "streams.UDP_IDLE_MS",
    "direct connections at once": "streams.CONNECTIONS",
    "connections that have still to prove themselves": "streams.GREETINGS",
    "connections without a proof that are accepted at once": "listener.BAD_BURST",
    "time until one more of these is accepted": "listener.BAD_MS",
    "more time for them if all places are taken": "listener.CROWDED_MS",
    "pause of accepting without descriptors": "listener.ACCEPT_PAUSE_MS",
    "time for a proof to arrive": "listener.GREETING_MS",
    "time from one side's end to the close of the connection": "streams.LEAVE_MS",
    "longest interval of reading `/proc` where that is five times the poll interval": "detect.PROC_BASE_MS",
    "the same where reading is slow": "detect.PROC_LIMIT_MS",
}
"""Kept by the agent alone: the name in its source."""

NUMBERS = table("Numbers", "number")


def amount(cell: str) -> int:
    digits, _, unit = cell.partition(" ")
    return int(digits) * UNITS[unit]


def test_every_number_is_one_constant_of_the_code() -> None:
    assert [row[0] for row in NUMBERS] == [*BOTH, *AGENT]
    assert [row[2] for row in NUMBERS] == ["both"] * len(BOTH) + ["agent"] * len(AGENT)


@pytest.mark.parametrize(("number", "cell"), [row[:2] for row in NUMBERS], ids=[row[0] for row in NUMBERS])
def test_numbers_have_the_value_of_the_code(number: str, cell: str) -> None:
    name, value = BOTH.get(number) or (AGENT[number], amount(cell))
    assert in_c()[name] == value == amount(cell)


IN_POWERS = {"highest credit": "2^31 - 1"}


@pytest.mark.parametrize(("number", "cell"), [row[:2] for row in NUMBERS], ids=[row[0] for row in NUMBERS])
def test_numbers_that_the_section_repeats_are_those_of_the_table(number: str, cell: str) -> None:
    """A change of the constant has to reach the text."""
    text = " ".join(section("Agent protocol").partition("### Numbers")[0].split())
    digits, _, unit = cell.partition(" ")
    written = IN_POWERS.get(number) or f"{int(digits):,}" + (f" {unit}" if unit not in ("", "bytes") else "")
    assert re.search(rf"(?<![\d.,]){re.escape(written)}(?!\w|[.,]\d)", text)


def test_streams_are_numbered_in_32_bits() -> None:
    assert frames.MAX_STREAM == 2**32 - 1
    assert frames.MAX_CREDIT == 2**31 - 1


def test_signed_bytes_begin_with_the_same_text() -> None:
    rows = table("Direct connections", "HMAC-SHA256")
    for row, words, source in zip(
        rows,
        (handshake.HOST_WORDS, handshake.AGENT_WORDS, handshake.TRUNK_WORDS),
        ("listener.c", "listener.c", "trunk.c"),
        strict=True,
    ):
        quoted = f'"{words.decode()}"'
        assert ticked(row[1]) == [quoted]
        assert quoted in (ROOT / "agent" / source).read_text()


def test_reasons_of_bye() -> None:
    reasons = payload("BYE").partition(" · ")[0].removeprefix("reason (1): ")
    assert reasons == ", ".join(f"{number} {reason}" for number, reason in enumerate(frames.BYE_REASONS, 1))


def test_protocol_is_described_in_its_section_alone() -> None:
    pointer = (ROOT / "agent/PROTOCOL.md").read_text(encoding="utf-8")
    assert "(../SPEC.md#agent-protocol)" in pointer
    assert "|" not in pointer, "a second table would soon be another one"


# Where it lies in the container.


def test_the_agents_place_and_name() -> None:
    text = section("Agent")
    assert f"{agent_install.FOLDER}/agent-HASH" in ticked(text)
    assert re.findall(r"\bmode (\d+)", text) == [f"{agent_install.MODE:04o}"]

"""The control socket's codec: messages come whole and in order however the bytes are cut, and nothing else comes."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.control.protocol import Message, MessageDecoder, encode, error_message, is_result
from autoforward.core.errors import (
    AutoforwardError,
    EngineUnreachableError,
    PortUnavailableError,
    ProtocolError,
    TargetError,
    UsageError,
)

pytestmark = pytest.mark.unit

LIMIT = 200

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.dictionaries(st.text(), JSON_VALUES, max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=12)
WRONG_LINES = st.one_of(
    st.binary(max_size=60)
    .filter(lambda line: b"\n" not in line and not _is_json(line))
    .map(lambda line: (line, "JSON")),
    JSON_VALUES.filter(lambda value: not isinstance(value, dict))
    .map(lambda value: (json.dumps(value).encode(), "an object"))
    .filter(lambda wrong: len(wrong[0]) <= LIMIT),
    st.integers(LIMIT + 1, 3 * LIMIT).map(lambda length: (b"x" * length, "too long")),
    st.just((b"[" * LIMIT, "JSON")),
)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def decoded(decoder: MessageDecoder, parts: list[bytes]) -> list[Message]:
    found = []
    for part in parts:
        decoder.feed(part)
        while (message := decoder.next_message()) is not None:
            found.append(message)
    return found


@given(st.lists(MESSAGES, max_size=5), CUTS)
def test_messages_come_whole_and_in_order(messages: list[Message], cuts: list[int]) -> None:
    data = b"".join(map(encode, messages))
    assert data.count(b"\n") == len(messages)
    assert decoded(MessageDecoder(), pieces(data, cuts)) == messages


@given(st.lists(MESSAGES.filter(lambda message: len(encode(message)) <= LIMIT), max_size=3), WRONG_LINES, CUTS)
def test_a_wrong_line_is_named_after_the_messages_before_it(
    messages: list[Message], wrong: tuple[bytes, str], cuts: list[int]
) -> None:
    line, reason = wrong
    decoder = MessageDecoder(LIMIT, "the request")
    found = []
    with pytest.raises(ProtocolError, match=f"the request is (not )?{reason}"):
        for part in pieces(b"".join(map(encode, messages)) + line + b"\n", cuts):
            decoder.feed(part)
            while (message := decoder.next_message()) is not None:
                found.append(message)
    assert found == messages


@given(MESSAGES, st.integers(0, 400))
def test_a_line_without_its_newline_is_no_message(message: Message, cut: int) -> None:
    line = encode(message)
    assert decoded(MessageDecoder(), [line[: min(cut, len(line) - 1)]]) == []


def test_a_line_may_be_as_long_as_the_limit() -> None:
    line = encode({"op": "x" * 50})
    assert decoded(MessageDecoder(len(line) - 1), [line, line]) == [{"op": "x" * 50}] * 2
    endless = MessageDecoder(LIMIT)
    endless.feed(b" " * (LIMIT + 1))
    with pytest.raises(ProtocolError, match="too long"):
        endless.next_message()


@pytest.mark.parametrize(
    "kind", [AutoforwardError, UsageError, EngineUnreachableError, TargetError, PortUnavailableError]
)
@pytest.mark.parametrize("hint", [None, "try it so"])
def test_an_error_is_the_same_at_the_other_end(kind: type[AutoforwardError], hint: str | None) -> None:
    with pytest.raises(AutoforwardError) as caught:
        is_result(error_message(kind("it broke", hint=hint)))
    assert (type(caught.value), str(caught.value), caught.value.hint) == (kind, "it broke", hint)


@pytest.mark.parametrize(
    ("message", "expected"),
    [({"type": "result", "rows": []}, True), ({"type": "progress"}, False), ({"type": "new"}, False)],
)
def test_only_a_result_is_a_result(message: Message, expected: bool) -> None:
    assert is_result(message) is expected


@pytest.mark.parametrize(
    "message", [{}, {"type": "error"}, {"type": "error", "exit_code": [], "message": "", "hint": None}]
)
def test_an_answer_without_its_fields_is_malformed(message: Message) -> None:
    with pytest.raises(ProtocolError, match="malformed"):
        is_result(message)

"""Keys: what terminals send for them, in one piece or in several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.cli.terminal.keyboard import MAX_SEQUENCE, KeyReader

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jk", ["j", "k"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1bOF", ["page-up", "page-down", "home", "end"]),
        (b"\r", ["enter"]),
        (b"\x1b[1;5Cq", ["q"]),  # Ctrl-Right means nothing, and its C is no key
        (b"\x1b[200~q\x1b[201~s", ["q", "s"]),
        (b"\x1bqs", ["s"]),  # Alt-q is not q
        (b"\xc3\xa9\x00\x7f", []),
    ],
)
def test_keys(data: bytes, keys: list[str]) -> None:
    assert KeyReader().feed(data) == keys
    reader = KeyReader()
    assert [key for byte in data for key in reader.feed(bytes([byte]))] == keys


def test_the_escape_key_alone_swallows_nothing_that_comes_later() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b") == []
    reader.forget()
    assert reader.feed(b"q") == ["q"]


def test_a_sequence_without_an_end_is_not_kept_for_ever() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b[" + b"0" * MAX_SEQUENCE) == []
    assert reader.feed(b"q") == ["q"]


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_anything_can_be_typed(one: bytes, other: bytes) -> None:
    reader = KeyReader()
    for key in (*reader.feed(one), *reader.feed(other)):
        assert key.isprintable()

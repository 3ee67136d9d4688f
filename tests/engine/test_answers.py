"""Answers of the engine: what is short is what it is, however it is cut into chunks; what is long costs its beginning."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from autoforward.core.identity.labels import (
    LABEL_METADATA,
    MAX_LABEL_CHARACTERS,
    MAX_METADATA_CHARACTERS,
    bounded,
    own_labels,
)
from autoforward.engine.answers import CHUNK_BYTES, read_answer

pytestmark = pytest.mark.unit

MEBIBYTE = 1 << 20


def pieces(data: bytes, chance: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = chance.choice((1, 2, 3, 17, 1000, CHUNK_BYTES))
        yield data[at : at + size]
        at += size


def labels_of(labels: dict[str, str], *, ascii_only: bool = False) -> dict[str, str]:
    said = json.dumps({"Config": {"Labels": labels}}, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    return dict(read_answer(said[at : at + CHUNK_BYTES] for at in range(0, len(said), CHUNK_BYTES))["Config"]["Labels"])


ALPHABET = 'ab{}[]:, \\"\n\t\0/ué€😀\u2028<&'


def test_what_is_short_is_what_it_is_however_it_is_cut() -> None:
    chance = random.Random(12)

    def text() -> str:
        return "".join(chance.choices(ALPHABET, k=chance.choice((0, 1, 2, 5, 40, MAX_LABEL_CHARACTERS))))

    for number in range(100):
        value = {
            "a": [text() for _ in range(5)],
            text(): {text(): None, "n": -1.5e3, "t": True},
            "Labels": {"x": text()},
        }
        said = json.dumps(value, ensure_ascii=bool(number % 2), indent=chance.choice((None, 1))).encode()
        assert read_answer(pieces(said, chance)) == value


@pytest.mark.parametrize("one", ["x", '"', "\\", "\n", "é", "€", "😀", "<"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_beginning_of_what_is_long_is_still_too_long_and_whole_characters(one: str, ascii_only: bool) -> None:
    for odd in (0, 1, 5, 11):  # wherever in a character the limit is
        long = "y" * odd + one * (20 * MAX_LABEL_CHARACTERS)
        kept = labels_of({"x": long, "z": "z"}, ascii_only=ascii_only)
        assert kept["z"] == "z"
        assert long.startswith(kept["x"])
        assert MAX_LABEL_CHARACTERS < len(kept["x"]) < 10 * MAX_LABEL_CHARACTERS
        assert bounded(kept) == {"z": "z"}


def test_metadata_is_whole_up_to_its_own_limit() -> None:
    valid = '"' * MAX_METADATA_CHARACTERS
    assert labels_of({LABEL_METADATA: valid})[LABEL_METADATA] == valid
    kept = labels_of({LABEL_METADATA: "<" * MEBIBYTE}, ascii_only=False)[LABEL_METADATA]
    assert len(bounded({LABEL_METADATA: kept})[LABEL_METADATA]) == MAX_METADATA_CHARACTERS + 1, "as if it were whole"


def test_long_label_of_an_image_is_not_the_container_s_own() -> None:
    """The beginning of the same text is the same text."""
    labels = {"a": "x" * MEBIBYTE, "com.docker.compose.project": "p" * MEBIBYTE}
    assert own_labels(labels_of(labels), labels_of(labels)) == {}


@pytest.mark.parametrize("text", ["x", "\n", '"\\', "é😀"])
def test_long_string_costs_nothing_beyond_its_beginning(text: str) -> None:
    size = 8 * MEBIBYTE
    said = json.dumps(text * 1000, ensure_ascii=False).encode()[1:-1]

    def chunks() -> Iterator[bytes]:
        yield b'{"Labels":{"x":"'
        for _ in range(size // len(said)):
            yield said
        yield b'","y":"y"}}'

    tracemalloc.start()
    try:
        labels = read_answer(chunks())["Labels"]
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert labels["y"] == "y"
    assert peak < MEBIBYTE


@pytest.mark.parametrize("said", [b"", b"{", b'{"a":"', b'{"a":"\\', b'{"a":"x', b"nothing", b'{"a":"\xff"}'])
def test_what_is_no_json_is_an_error(said: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_answer([said])
    assert isinstance(caught.value, ValueError)


def test_its_cost_is_linear_in_what_there_is() -> None:
    """Many labels, many of them long, and chunks of every size."""
    rows: list[dict[str, Any]] = [{"Labels": {f"k{n}": "v" * (n % 6000) for n in range(200)}} for _ in range(20)]
    said = json.dumps(rows).encode()
    found = read_answer(said[at : at + 1000] for at in range(0, len(said), 1000))
    assert [sorted(row["Labels"]) for row in found] == [sorted(row["Labels"]) for row in rows]

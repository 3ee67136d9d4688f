"""What a fuzz target says when something is wrong that raises no exception of its own."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from autoforward.net.write_buffer import RECEIVE_BYTES

SPREAD: Final = 4
SPARE_BYTES: Final = RECEIVE_BYTES + 32 * 1024
"""What is held may cost so many times the bytes that wait, and so much more: a piece of one read is held whole."""


class BrokenLawError(Exception):
    """What is fuzzed did something else than it should."""


def must(condition: object, law: str, *seen: object) -> None:
    if not condition:
        raise BrokenLawError(f"{law}: {seen!r}"[:2000])


def cost_of(pieces: Collection[bytes | memoryview]) -> int:
    """What these take in memory; what views look at is counted once."""
    wholes = {
        id(whole): whole for piece in pieces for whole in (piece.obj if isinstance(piece, memoryview) else piece,)
    }
    return sum(map(sys.getsizeof, wholes.values())) + 8 * len(pieces)


def must_be_cheap(pieces: Collection[bytes | memoryview], owner: object) -> None:
    size = sum(map(len, pieces))
    must(cost_of(pieces) <= SPREAD * size + SPARE_BYTES, "what is held costs what it is", owner, size, cost_of(pieces))

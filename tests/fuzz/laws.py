"""What a fuzz target says when something is wrong that raises no exception of its own."""

from __future__ import annotations


class BrokenLawError(Exception):
    """What is fuzzed did something else than it should."""


def must(condition: object, law: str, *seen: object) -> None:
    if not condition:
        raise BrokenLawError(f"{law}: {seen!r}"[:2000])

"""A state machine's transitions as a table that tests walk. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

S = TypeVar("S")


class Transitions(Generic[S]):
    """`table[state]` holds the possible next states; a state without any is final. Staying in a state is allowed."""

    def __init__(self, table: Mapping[S, Collection[S]]) -> None:
        self.table = table

    def to(self, before: S, after: S) -> S:
        """Returns `after`. Raises RuntimeError if the table does not allow it: a bug."""
        if after != before and after not in self.table[before]:
            raise RuntimeError(f"{before} does not become {after}")
        return after

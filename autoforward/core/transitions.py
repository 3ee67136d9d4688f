"""The states of a machine and what may follow what, as a table that tests walk. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

S = TypeVar("S")


class Transitions(Generic[S]):
    """`table[state]` holds the states that may follow; a state that has none is final. Staying in a state is allowed."""

    def __init__(self, table: Mapping[S, Collection[S]]) -> None:
        self.table = table

    def to(self, before: S, after: S) -> S:
        """`after`. Raises RuntimeError where the table does not lead there: a fault of the program."""
        if after != before and after not in self.table[before]:
            raise RuntimeError(f"{before} does not become {after}")
        return after

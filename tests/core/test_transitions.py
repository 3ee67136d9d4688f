"""The tables of states: each state can be reached, each can come to the end, and nothing else is possible."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from autoforward.core.transitions import Transitions
from autoforward.dataplane.mux.stream import MOVES, Move
from autoforward.dataplane.relay import STAGES, Stage
from autoforward.supervisor.session.session_states import SESSION, State

pytestmark = pytest.mark.unit

TABLES: list[tuple[Transitions[Any], list[Any], Any]] = [
    (STAGES, list(Stage), Stage.OVER),
    (MOVES, list(Move), Move.OVER),
    (SESSION, list(get_args(State)), "ended"),
]
"""The table, its states from the first one on, and the last."""
each_table = pytest.mark.parametrize(("table", "states", "last"), TABLES, ids=["relay", "stream's move", "session"])


@each_table
def test_the_table_has_each_state_and_no_other(table: Transitions[Any], states: list[Any], last: Any) -> None:
    assert list(table.table) == states
    assert set(itertools.chain.from_iterable(table.table.values())) <= set(states)


@each_table
def test_every_state_can_be_reached_from_the_first(table: Transitions[Any], states: list[Any], last: Any) -> None:
    reached, todo = set(), [states[0]]
    while todo:
        state = todo.pop()
        if state not in reached:
            reached.add(state)
            todo += table.table[state]
    assert reached == set(states)


@each_table
def test_the_end_can_come_in_every_state_and_is_final(table: Transitions[Any], states: list[Any], last: Any) -> None:
    for state in states:
        assert table.to(state, last) is last
        if state is not last:
            with pytest.raises(RuntimeError, match="does not become"):
                table.to(last, state)


@each_table
def test_transition_outside_the_table_is_an_error(table: Transitions[Any], states: list[Any], last: Any) -> None:
    for before, after in itertools.product(states, states):
        if after in table.table[before] or after == before:
            assert table.to(before, after) is after
        else:
            with pytest.raises(RuntimeError):
                table.to(before, after)


def test_bytes_never_come_back_from_the_kernel() -> None:
    """Once a relay is spliced, or its stream has said MOVE, no byte goes through the far end again."""
    assert STAGES.table[Stage.SPLICED] == (Stage.OVER,)
    assert set(MOVES.table[Move.SENT]) == {Move.DONE, Move.OVER}

"""How long is waited before something that failed is tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.core.backoff import JITTER, LOCAL_LIMIT_S, REMOTE_LIMIT_S, delay_s

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("failures", "local", "expected_s"),
    [
        (1, True, 0.2),
        (2, True, 0.4),
        (4, True, 1.6),
        (5, True, 2.0),
        (9, True, 2.0),
        (8, False, 25.6),
        (9, False, 30.0),
    ],
)
def test_delay_doubles_up_to_its_limit(failures: int, local: bool, expected_s: float) -> None:
    assert delay_s(failures, local=local, chance=0.5) == pytest.approx(expected_s)


@given(st.integers(0, 10**9), st.booleans(), st.floats(0, 1))
def test_delay_never_leaves_its_bounds(failures: int, local: bool, chance: float) -> None:
    limit_s = LOCAL_LIMIT_S if local else REMOTE_LIMIT_S
    assert 0 < delay_s(failures, local=local, chance=chance) <= limit_s * (1 + JITTER) + 1e-9


def test_jitter_spreads_clients_that_failed_together() -> None:
    assert delay_s(5, local=True, chance=0.0) == pytest.approx(1.6)
    assert delay_s(5, local=True, chance=1.0) == pytest.approx(2.4)

"""Rates and sparklines of `list --watch`: from counters at two times."""

from __future__ import annotations

import pytest

from autoforward.cli.terminal.rates import ASCII_BLOCKS, MAX_SAMPLES, Rates, key_of, short_rate, sparkline
from tests.cli.test_listing import row

pytestmark = pytest.mark.unit


def moved(into: int, out: int, **changes: object) -> dict[str, object]:
    return row(bytes={"in": into, "out": out}, **changes)


def test_two_looks_make_a_rate() -> None:
    rates = Rates()
    assert rates.sample([moved(1000, 5000)], 10.0)
    assert (rates.of(row()).up, rates.of(row()).down) == (0, 0)  # what was moved before is no rate
    assert rates.sample([moved(1500, 9000)], 12.0)
    rate = rates.of(row())
    assert (rate.up, rate.down, list(rate.samples)) == (250, 2000, [0, 2250])


def test_looks_that_come_too_soon_are_none() -> None:
    rates = Rates()
    rates.sample([moved(0, 0)], 10.0)
    assert not rates.sample([moved(1000, 0)], 10.2)
    assert rates.of(row()).up == 0
    rates.sample([moved(1000, 0)], 11.0)
    assert rates.of(row()).up == 1000


def test_counters_that_begin_anew_are_no_rate() -> None:
    rates = Rates()
    for at_s, count in enumerate((5000, 9000, 100, 300)):
        rates.sample([moved(count, 0)], float(at_s))
    assert list(rates.of(row()).samples) == [0, 4000, 0, 200]


def test_a_forward_that_went_is_forgotten_and_history_is_bounded() -> None:
    rates = Rates()
    for at_s in range(3 * MAX_SAMPLES):
        rates.sample([moved(at_s, 0)], float(at_s))
    assert len(rates.of(row()).samples) == MAX_SAMPLES
    rates.sample([], 1000.0)
    assert list(rates.of(row()).samples) == []


def test_rows_without_an_id_are_told_apart() -> None:
    one, other = row(id=None, port=8080), row(id=None, port=8081)
    assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(row(id=None, port=8080, ageSeconds=9.0))


@pytest.mark.parametrize(
    ("samples", "width", "line"),
    [
        ([], 4, ""),
        ([0, 0], 4, ""),
        ([0, 4, 8], 4, "  ▄█"),
        ([8, 0, 1, 2, 8], 4, " ▁▂█"),
        ([1, 1_000_000], 2, "▁█"),
        ([5], 0, ""),
    ],
)
def test_sparklines(samples: list[float], width: int, line: str) -> None:
    assert sparkline(samples, width) == line


def test_sparkline_without_utf8() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7, 8], 9, ASCII_BLOCKS) == " .:-=+*#@"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (9_940, "9.9k"),
        (9_960, "10k"),
        (999_600, "1.0M"),
        (3.4e7, "34M"),
        (2e12, "2.0T"),
    ],
)
def test_short_rates(rate: float, text: str) -> None:
    assert short_rate(rate) == text
    assert len(text) <= 4

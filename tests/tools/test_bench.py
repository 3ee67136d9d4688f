"""The benchmark's arithmetic: what it calls a median, a pass, a loss; its table, page and plot are made of that."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.checks import CHECKS, Check, judge
from bench.figures import COLUMNS, median, paired_ratios, percentile, value
from bench.plot import WIDTH, decades, length, svg
from bench.report import losses, markdown, text

pytestmark = pytest.mark.unit

NUMBERS = st.lists(st.floats(0.001, 1e6), min_size=1)


def way(title: str, skipped: str | None = None, note: str | None = None, **samples: list[float]) -> dict[str, Any]:
    return {"title": title, "skipped": skipped, "note": note, "samples": samples}


def document() -> dict[str, Any]:
    """A run in which everything that must hold holds, most of it narrowly."""
    return {
        "version": 1,
        "date": "2026-01-01 00:00 UTC",
        "quick": False,
        "rounds": 3,
        "machine": {"cores": 2, "cpu": "some", "kernel": "Linux 6", "engine": "20", "python": "3.11", "load": "0.1"},
        "idle_shares": {"supervisor": 0.01, "containers": 0.1},
        "ways": {
            "published": way("published", connections_s=[4500, 5200, 100], out_mb_s=[1000], first_byte_ms=[0.4]),
            "ssh": way("ssh", first_byte_ms=[1.0, 1.2, 0.9], connections_s=[2500], requests_s=[10000]),
            "exec-cli": way("exec", skipped="no socat\nat all"),
            "bare-exec": way("bare", out_mb_s=[200, 220, 210], in_mb_s=[200]),
            "agent": way(
                "agent",
                first_byte_ms=[0.7, 0.69, 5.0],
                connections_s=[4000],
                requests_s=[11000],
                out_mb_s=[900],
                in_mb_s=[400],
                detection_ms=[60.0] * 95 + [149.0] * 4 + [400.0],
                idle_percent=[0.3],
                memory_mb=[60.0],
                concurrent_right=[1000],
                fairness_p95_ms=[29.0],
            ),
            "agent-mux": way("mux", out_mb_s=[189], in_mb_s=[180]),
        },
    }


def test_percentile_and_median_of_known_samples() -> None:
    assert percentile([3, 1, 2], 0) == 1
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7], 0.99) == 7
    assert median([4, 1, 3]) == 3
    assert median([4, 1, 3, 2]) == 2.5
    for nothing in (median, lambda samples: percentile(samples, 0.5)):
        with pytest.raises(ValueError, match="no samples"):
            nothing([])
    with pytest.raises(ValueError, match="not within"):
        percentile([1], 95)


@given(NUMBERS)
def test_percentiles_are_samples_in_order(samples: list[float]) -> None:
    values = [percentile(samples, part) for part in (0, 0.5, 0.95, 0.99, 1)]
    assert values == sorted(values)
    assert set(values) <= set(samples)
    assert (values[0], values[-1]) == (min(samples), max(samples))
    assert min(samples) <= median(samples) <= max(samples)


def test_a_run_that_holds_passes_every_check() -> None:
    outcomes = judge(document())
    assert [outcome.line() for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == len(CHECKS)


@pytest.mark.parametrize(
    ("name", "column", "samples", "check"),
    [
        ("agent", "first_byte_ms", [0.71], "first byte p50, agent / ssh -L"),
        ("agent", "connections_s", [3990], "connections/s, agent / ssh -L"),
        ("published", "connections_s", [5010], "connections/s, agent / docker run -p"),
        ("agent", "requests_s", [10990], "keep-alive requests/s, agent / ssh -L"),
        ("agent-mux", "out_mb_s", [188], "bulk out, mux / bare exec stream"),
        ("agent", "out_mb_s", [799], "bulk out, direct path / docker run -p"),
        ("agent", "detection_ms", [60.0] * 94 + [151.0] * 6, "detection p95, ms"),
        ("agent", "idle_percent", [0.31], "idle, % of a core per container"),
        ("agent", "memory_mb", [60.1], "supervisor, 50 containers x 10 forwards, MB"),
        ("agent", "concurrent_right", [999], "connections at once that are answered rightly"),
        ("agent", "fairness_p95_ms", [30.1], "first byte p95 beside a stalled reader and bulk, ms"),
    ],
)
def test_each_check_fails_by_itself(name: str, column: str, samples: list[float], check: str) -> None:
    run = document()
    run["ways"][name]["samples"][column] = samples
    assert [outcome.check.title for outcome in judge(run) if not outcome.passed] == [check]


def test_every_check_can_fail() -> None:
    """Each check names ways and columns that exist, so that none is silently "not measured" for ever."""
    keys = {column.key for column in COLUMNS}
    assert {check.column for check in CHECKS} <= keys
    assert {check.way for check in CHECKS} | {check.other for check in CHECKS if check.other} <= {
        *document()["ways"],
        "agent-direct",
    }


def test_unmeasured_check_neither_passes_nor_fails() -> None:
    run = document()
    run["ways"]["ssh"] = way("ssh", skipped="no ssh here")
    outcomes = {outcome.check.title: outcome for outcome in judge(run)}
    assert outcomes["first byte p50, agent / ssh -L"].passed is None
    assert outcomes["first byte p50, agent / ssh -L"].line().endswith("not measured")
    assert outcomes["connections/s, agent / docker run -p"].passed is True


def test_without_a_direct_path_the_agent_lane_is_the_mux() -> None:
    run = document()
    del run["ways"]["agent-mux"]
    outcomes = {outcome.check.title: outcome for outcome in judge(run)}
    assert outcomes["bulk out, direct path / docker run -p"].passed is None
    assert outcomes["bulk out, mux / bare exec stream"].measured == pytest.approx(900 / 210)


def test_ratios_are_of_medians_and_their_spread_is_that_of_rounds() -> None:
    run = document()
    check = Check("first byte", "agent", "first_byte_ms", True, 0.7, "ssh")
    [outcome] = judge(run, (check,))
    assert outcome.measured == pytest.approx(0.7)
    assert outcome.spread == (pytest.approx(0.575), pytest.approx(5.0 / 0.9))
    assert paired_ratios(run, "agent", "nobody", "first_byte_ms") == []


def test_the_table_shows_each_way_and_why_one_was_skipped() -> None:
    shown = text(document())
    assert "exec" in shown and "skipped: no socat" in shown and "at all" not in shown
    [row] = [line for line in shown.splitlines() if line.startswith("agent")]
    assert "4,000" in row and "0.70" in row
    assert "start" not in shown  # nobody measured it


def test_the_page_says_where_we_lose() -> None:
    run = document()
    assert any("bulk out" in words and "published" in words for words in losses(run))
    assert not any("connections" in words and "ssh" in words for words in losses(run))
    page = markdown(run, judge(run), "plot.svg")
    assert "(plot.svg)" in page and "2 cores" in page and "20" in page
    assert page.index("## Where we lose") < page.index("bulk out, MB/s: 900")
    better = copy.deepcopy(run)
    for name in ("published", "ssh"):
        better["ways"][name]["samples"] = {}
    assert "Nowhere in this run." in markdown(better, judge(better), "plot.svg")


def test_the_plot_is_xml_with_longer_bars_for_more() -> None:
    picture = ElementTree.fromstring(svg(document()))
    space = "{http://www.w3.org/2000/svg}"
    words = [element.text for element in picture.iter(f"{space}text")]
    assert "4,000" in words and "agent" in words
    assert any(word and word.startswith("first byte") for word in words)
    for bar in picture.iter(f"{space}rect"):
        if bar.get("x") is not None:
            assert 0 < float(bar.get("width", "0")) < WIDTH


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=8))
def test_bars_keep_the_order_of_numbers_and_stay_inside(numbers: list[float]) -> None:
    low, high = decades(numbers)
    sizes = [length(number, low, high, 400) for number in sorted(numbers)]
    assert sizes == sorted(sizes)
    assert all(2 <= size <= 400.001 for size in sizes)
    assert value(document(), "agent", "detection_p95_ms") == 60.0

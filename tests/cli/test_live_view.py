"""The screen of `list --watch` as text: what is on it at each size, and what stays selected. The rest: test_list_watch.py."""

from __future__ import annotations

import re

import pytest

from autoforward.cli.console.cells import columns_of
from autoforward.cli.terminal.live_view import View, draw
from autoforward.cli.terminal.table import TerminalStyle
from tests.cli.test_listing import FULL_ROW, row

pytestmark = pytest.mark.unit


def some_rows(count: int, **changes: object) -> list[dict[str, object]]:
    return [
        row(
            **{
                "id": f"fwd-{number:08x}",
                "port": 3000 + number,
                "localPort": 3000 + number,
                "url": f"http://localhost:{3000 + number}",
                **changes,
            }
        )
        for number in range(count)
    ]


def view_of(rows: list[dict[str, object]], down: int = 0) -> View:
    """A forward moves 1 kB a second in, and its number of MB out."""
    view = View()
    for at_s in range(3):
        moving = [{**one, "bytes": {"in": 1000 * at_s, "out": 10**6 * n * at_s}} for n, one in enumerate(rows)]
        view.rates.sample(moving, float(at_s))
    view.update(rows)
    view.move(down)
    return view


def texts(view: View, width: int, height: int = 24, **style: bool) -> list[str]:
    return draw(view, TerminalStyle(width, **style), height)


def test_a_screen() -> None:
    lines = texts(view_of(some_rows(2), down=1), 80, 7)
    assert lines == [
        "autoforward  2 ports: 2 active  ↑ 2 kB/s  ↓ 1 MB/s",
        "  LOCAL                  TARGET  PORT  STATUS  AGE  UP/s  DOWN/s  TREND",
        "  http://localhost:3000  web     3000  active  5s   1.0k       0              ██",
        "> http://localhost:3001  web     3001  active  5s   1.0k    1.0M              ██",
        "",
        "fwd-00000001  http://localhost:3001 -> web:3001",
        "↑↓ select  o open  c copy URL  s stop  q quit",
    ]


RATES = ("UP/s", "DOWN/s", "TREND")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (24, ["LOCAL"]),
        (40, ["LOCAL", "TARGET", "STATUS"]),
        (60, ["LOCAL", "TARGET", "STATUS", "UP/s", "DOWN/s"]),
        (80, ["LOCAL", "TARGET", "PORT", "PROCESS", "STATUS", "UP/s", "DOWN/s", "TREND"]),
        (100, ["LOCAL", "TARGET", "PORT", "PROCESS", "LABEL", "STATUS", "UP/s", "DOWN/s", "TREND"]),
        (220, ["LOCAL", "TARGET", "SERVICE", "PORT", "PROCESS", "LABEL", "STATUS", "AGE", "CONNECTIONS", *RATES]),
    ],
)
def test_columns_go_by_what_matters_least(width: int, columns: list[str]) -> None:
    lines = texts(view_of([FULL_ROW]), width)
    assert lines[1].split() == columns
    assert max(map(columns_of, lines)) <= width


@pytest.mark.parametrize("width", [1, 2, 3, 10, 20, 33, 47, 60, 80, 99, 140, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 24])
def test_screen_fits_any_size(width: int, height: int) -> None:
    for rows in ([], some_rows(1), [FULL_ROW] * 3, some_rows(50, reason="because")):
        lines = texts(view_of(rows, down=20), width, height)
        assert len(lines) <= height
        if width >= 33:
            assert max(map(columns_of, lines), default=0) <= width


def test_selected_row_is_on_the_screen() -> None:
    view = view_of(some_rows(50))
    for step in (1, 30, -3, 100, -100, 7):
        view.move(step)
        marked = [line for line in texts(view, 80, 12) if line.startswith("> ")]
        assert len(marked) == 1
        assert f"localhost:{3000 + view.index} " in marked[0]


def test_scrolling_moves_no_further_than_it_must() -> None:
    view = view_of(some_rows(50), down=20)
    first = texts(view, 80, 12)
    view.move(-2)
    second = texts(view, 80, 12)
    rows = [[line[2:] for line in lines[2:-3]] for lines in (first, second)]
    assert rows[0] == rows[1]


def test_reasons_are_under_their_rows_while_there_is_room_and_else_below() -> None:
    rows = some_rows(6)
    rows[2]["reason"] = "host port 3002 is in use by nginx (pid 12)"
    view = view_of(rows)
    roomy = texts(view, 80, 24)
    assert roomy[roomy.index("    host port 3002 is in use by nginx (pid 12)") - 1].startswith(
        "  http://localhost:3002"
    )
    assert not any("nginx" in line for line in texts(view, 80, 10))
    view.move(2)
    tight = texts(view, 80, 10)
    assert tight[-2] == "host port 3002 is in use by nginx (pid 12)"
    assert len(tight) == 10


def test_selected_row_stays_selected_when_others_come_and_go() -> None:
    view = view_of(some_rows(5), down=2)
    view.update([*some_rows(9)[5:], *some_rows(5)[1:]])
    assert view.row is not None
    assert view.row["id"] == "fwd-00000002"
    view.update(some_rows(2))  # it has gone, and so has the place where it was
    assert view.row["id"] == "fwd-00000001"
    view.update([])
    assert view.row is None


def test_screen_without_a_supervisor_or_rows() -> None:
    assert "nothing is forwarded" in texts(view_of([]), 80)[1]
    view = view_of(some_rows(2))
    view.absent = "no supervisor"
    assert texts(view, 80)[:2] == ["autoforward", "    no supervisor"]


def test_a_note_stands_where_the_keys_do() -> None:
    view = view_of(some_rows(1))
    view.note = "copied\x1b[31m"
    assert texts(view, 80)[-1] == "copied�[31m"


def test_ascii_only_and_colours() -> None:
    view = view_of([{**one, "containerName": "店"} for one in some_rows(2)], down=1)
    plain = texts(view, 80, ascii=True)
    assert all(line.isascii() for line in plain)
    assert "@@" in plain[3]
    coloured = texts(view, 80, ascii=True, coloured=True)
    assert any("\x1b[32mactive" in line for line in coloured)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain

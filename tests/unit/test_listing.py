"""The table of `autoforward list`: aligned, narrow where it can be, with the reason under each row that has one."""

from __future__ import annotations

from typing import Any

import pytest

from autoforward.cli.listing import format_rows, print_rows
from autoforward.events import PortEvent, list_row


def row(**changes: Any) -> dict[str, Any]:
    event = PortEvent(
        event="updated",
        container_port=3000,
        host_port=3000,
        host_ip="127.0.0.1",
        transport="tcp",
        id="fwd-1a2b3c4d",
        container_name="web",
        container_host="127.0.0.1",
        status="active",
    )
    values = list_row(
        event,
        target="web",
        source="detected",
        lane="socat",
        age_s=5.0,
        connections_active=0,
        connections_total=0,
        connections_refused=0,
        bytes_in=0,
        bytes_out=0,
    )
    return {**values, **changes}


def cells(text: str) -> list[str]:
    return text.split()


def test_one_forward() -> None:
    assert format_rows([row()], 0).splitlines() == [
        "ID            LOCAL                  TARGET  PORT  STATUS  AGE",
        "fwd-1a2b3c4d  http://localhost:3000  web     3000  active  5s",
    ]


def test_columns_are_aligned_and_there_when_a_row_needs_them() -> None:
    rows = [
        row(
            label="the shop", connections={"active": 1, "total": 12, "refused": 0}, bytes={"in": 999, "out": 1_500_000}
        ),
        row(id="fwd-00000000", containerName="a-longer-name", ageSeconds=7200.0),
    ]
    lines = format_rows(rows, 0).splitlines()
    assert cells(lines[0])[-4:] == ["LABEL", "AGE", "CONNECTIONS", "TRAFFIC"]
    assert "the shop  5s   1 of 12      999 B in, 2 MB out" in lines[1]
    assert lines[2].index("a-longer-name") == lines[1].index("web") == lines[0].index("TARGET")
    assert lines[2].endswith("2h")
    assert all(line == line.rstrip() for line in lines)


def test_reasons_stand_under_their_row() -> None:
    lines = format_rows([row(reason="host port 3000 is in use by nginx (pid 12)"), row()], 0).splitlines()
    assert lines[2] == "    host port 3000 is in use by nginx (pid 12)"
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("changes", "port"),
    [
        ({}, "3000"),
        ({"containerHost": None}, "3000"),
        ({"containerHost": "::1"}, "3000"),
        ({"containerHost": "db", "port": 5432}, "db:5432"),
        ({"transport": "udp", "url": None}, "3000/udp"),
    ],
)
def test_where_a_forward_leads(changes: dict[str, Any], port: str) -> None:
    assert cells(format_rows([row(**changes)], 0).splitlines()[1])[3] == port


def test_a_port_that_is_not_forwarded() -> None:
    ignored = row(id=None, url=None, localPort=None, status="ignored", reason="excluded")
    lines = format_rows([ignored], 0).splitlines()
    assert cells(lines[1]) == ["-", "-", "web", "3000", "ignored"]
    assert lines[2].strip() == "excluded"


def test_an_event_of_a_whole_session_has_no_port() -> None:
    assert "None" not in format_rows([row(containerName=None, status=None, url=None)], 0)


@pytest.mark.parametrize(
    ("seconds", "age"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "60m"), (3600, "1h"), (86_400, "1d"), (9e6, "104d")]
)
def test_ages(seconds: float, age: str) -> None:
    assert format_rows([row(ageSeconds=seconds)], 0).endswith(age)


@pytest.mark.parametrize(
    ("count", "size"), [(1, "1 B"), (999, "999 B"), (1000, "1 kB"), (10**6, "1 MB"), (10**9, "1 GB"), (10**13, "10 TB")]
)
def test_sizes(count: int, size: str) -> None:
    assert f"{size} in, 0 B out" in format_rows([row(bytes={"in": count, "out": 0})], 0)


def test_lines_are_cut_to_the_terminal() -> None:
    lines = format_rows([row(reason="x" * 300)], 40).splitlines()
    assert [len(line) for line in lines] == [40, 40, 40]


def test_a_table_is_data_and_nothing_is_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row()])
    assert capsys.readouterr().err == ""
    print_rows([])
    nothing = capsys.readouterr()
    assert (nothing.out, nothing.err) == ("", "nothing is forwarded\n")

"""The table of `autoforward list`: aligned, narrow where it can be, with the reason under each row that has one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autoforward.cli.commands import list_
from autoforward.cli.commands.list_ import print_rows
from autoforward.cli.console.cells import columns_of, cut_to, in_ascii
from autoforward.cli.terminal.table import LISTED, PLAIN, TerminalStyle, choose_widths, format_rows
from autoforward.state.event_log import PortEvent, list_row

pytestmark = pytest.mark.unit


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


def test_row_of_one_forward() -> None:
    assert format_rows([row()]).splitlines() == [
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
    lines = format_rows(rows).splitlines()
    assert cells(lines[0])[-4:] == ["STATUS", "AGE", "CONNECTIONS", "TRAFFIC"]
    assert "the shop  active  5s   1 of 12      999 B in, 2 MB out" in lines[1]
    assert lines[2].index("a-longer-name") == lines[1].index("web") == lines[0].index("TARGET")
    assert lines[2].endswith("2h")
    assert all(line == line.rstrip() for line in lines)


def test_reasons_stand_under_their_row() -> None:
    lines = format_rows([row(reason="host port 3000 is in use by nginx (pid 12)"), row()]).splitlines()
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
def test_target_of_a_forward(changes: dict[str, Any], port: str) -> None:
    assert cells(format_rows([row(**changes)]).splitlines()[1])[3] == port


@pytest.mark.parametrize(
    ("host_ip", "local"),
    [("127.0.0.1", "localhost:53/udp"), ("192.0.2.7", "192.0.2.7:53/udp"), ("fd00::7", "[fd00::7]:53/udp")],
)
def test_target_of_a_forward_without_a_url(host_ip: str, local: str) -> None:
    udp = row(url=None, transport="udp", hostIp=host_ip, localPort=53)
    assert cells(format_rows([udp]).splitlines()[1])[1] == local


def test_a_port_that_is_not_forwarded() -> None:
    ignored = row(id=None, url=None, localPort=None, status="ignored", reason="excluded")
    lines = format_rows([ignored]).splitlines()
    assert cells(lines[1]) == ["-", "-", "web", "3000", "ignored"]
    assert lines[2].strip() == "excluded"


def test_an_event_of_a_whole_session_has_no_port() -> None:
    assert "None" not in format_rows([row(containerName=None, status=None, url=None)])


@pytest.mark.parametrize(
    ("seconds", "age"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "60m"), (3600, "1h"), (86_400, "1d"), (9e6, "104d")]
)
def test_ages_are_short(seconds: float, age: str) -> None:
    assert format_rows([row(ageSeconds=seconds)]).endswith(age)


@pytest.mark.parametrize(
    ("count", "size"), [(1, "1 B"), (999, "999 B"), (1000, "1 kB"), (10**6, "1 MB"), (10**9, "1 GB"), (10**13, "10 TB")]
)
def test_sizes_are_short(count: int, size: str) -> None:
    assert f"{size} in, 0 B out" in format_rows([row(bytes={"in": count, "out": 0})])


FULL_ROW = row(
    id="fwd-1a2b3c4d",
    port=3000,
    localPort=3001,
    url="http://localhost:3001",
    containerName="the-shop-of-many-things-api-1",
    process="node --inspect=127.0.0.1:9229 /workspaces/shop/server.js",
    label="storefront",
    service="api",
    status="reconnecting",
    ageSeconds=7200.0,
    connections={"active": 3, "total": 1200, "refused": 2},
    bytes={"in": 1_200_000, "out": 34_000_000},
    reason="host port 3000 is in use by nginx (pid 12), which was there before; " * 2,
)


def shown(width: int, **style: bool) -> tuple[list[str], list[str]]:
    """The columns that are there, and all lines, none wider than the terminal."""
    lines = format_rows([FULL_ROW], TerminalStyle(width, **style)).splitlines()
    assert max(map(columns_of, lines)) <= width, lines
    return cells(lines[0]), lines


def test_columns_go_by_what_matters_least() -> None:
    always = ["ID", "LOCAL", "TARGET"]
    assert shown(45)[0] == always
    assert shown(60)[0] == [*always, "PORT", "STATUS"]
    assert shown(80)[0] == [*always, "PORT", "PROCESS", "STATUS"]
    assert shown(140)[0] == [*always, "PORT", "PROCESS", "LABEL", "STATUS", "AGE", "CONNECTIONS"]
    assert shown(220)[0] == [*always, "SERVICE", "PORT", "PROCESS", "LABEL", "STATUS", "AGE", "CONNECTIONS", "TRAFFIC"]


def test_an_id_is_never_cut_and_a_reason_is_whole() -> None:
    for width in (40, 45, 60, 80, 100, 140):
        _, lines = shown(width)
        assert "fwd-1a2b3c4d" in lines[1]
        assert "localhost:3001" in lines[1]
        reason = str(FULL_ROW["reason"]).strip()
        assert " ".join(" ".join(lines[2:]).split()) == (reason if "PORT" in lines[0] else f"port 3000: {reason}")
        assert all(line.startswith("    ") for line in lines[2:])


def test_the_scheme_goes_where_there_is_no_room() -> None:
    assert " http://localhost:3001" in shown(80)[1][1]
    assert " localhost:3001" in shown(60)[1][1]


@pytest.mark.parametrize("width", range(1, 200))
def test_table_is_no_wider_than_the_terminal(width: int) -> None:
    natural = {"ID": 12, "LOCAL": 21, "TARGET": 30, **dict.fromkeys(LISTED.goes, 12)}
    widths = choose_widths(natural, 14, width, LISTED)
    total = sum(widths.values()) + 2 * (len(widths) - 1)
    assert total <= width or widths == {"ID": 12, "LOCAL": 14, "TARGET": 10}
    assert widths["ID"] == 12
    assert widths["LOCAL"] in (14, 21)
    assert all(widths[name] <= natural[name] for name in widths)


def test_wide_and_combining_characters_take_the_room_that_they_take() -> None:
    assert [columns_of(text) for text in ("abc", "店", "e\u0301", "✔\ufe0f", "")] == [3, 2, 1, 1, 0]
    assert cut_to("店店店", 5) == "店店…"
    assert cut_to("店店店", 6) == "店店店"
    lines = format_rows([row(label="店"), row(label="shop")]).splitlines()
    at = [columns_of(line[: line.index("active")]) for line in lines[1:]]
    assert at[0] == at[1]


def test_a_terminal_that_knows_ascii_only_gets_nothing_else_and_is_as_wide() -> None:
    assert in_ascii("店e\u0301…") == "??e~"
    named = row(label="店", containerName="ünusual-" * 5, reason="host port 3000 is in use by “nginx”…")
    plain, ascii_only = (format_rows([named], TerminalStyle(100, ascii=ascii)).splitlines() for ascii in (False, True))
    assert all(line.isascii() for line in ascii_only)
    assert [columns_of(line) for line in ascii_only] == [columns_of(line) for line in plain]


def test_escape_sequences_of_a_container_do_not_reach_the_table() -> None:
    text = format_rows([row(label="\x1b]0;x\x07", process="a\nb", reason="\x9b31m")], TerminalStyle(100))
    assert "�]0;x�" in text
    assert "a�b" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)


def test_links_and_colours_are_there_when_they_are_understood_and_take_no_room() -> None:
    plain = format_rows([FULL_ROW], TerminalStyle(100)).splitlines()
    linked = format_rows([FULL_ROW], TerminalStyle(100, links=True)).splitlines()
    assert linked[1] == plain[1].replace(
        "http://localhost:3001", "\x1b]8;;http://localhost:3001\x1b\\http://localhost:3001\x1b]8;;\x1b\\"
    )
    assert (linked[0], linked[2:]) == (plain[0], plain[2:])
    coloured = format_rows([FULL_ROW], TerminalStyle(100, coloured=True))
    assert "\x1b[33mreconnecting\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines() == plain


def test_only_own_urls_become_links() -> None:
    bad = row(url="http://localhost:1/\x1b\\")
    assert "\x1b]8" not in format_rows([bad], TerminalStyle(100, links=True))


@pytest.mark.parametrize(
    ("environment", "style"),
    [
        ({"TERM": "xterm-256color"}, TerminalStyle(72, coloured=True, links=True)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, TerminalStyle(72, coloured=False, links=True)),
        ({"TERM": "linux"}, TerminalStyle(72, coloured=True, links=False, ascii=True)),
        ({"TERM": "xterm", "LC_ALL": "C"}, TerminalStyle(72, coloured=True, links=True, ascii=True)),
        ({"TERM": "xterm", "LANG": "de_DE.ISO-8859-1"}, TerminalStyle(72, coloured=True, links=True, ascii=True)),
        ({"TERM": "xterm", "LANG": "C", "LC_CTYPE": "en_GB.utf8"}, TerminalStyle(72, coloured=True, links=True)),
        ({"TERM": "dumb"}, TerminalStyle(72, coloured=False, links=False)),
    ],
)
def test_abilities_of_the_terminal_are_recognised(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], style: TerminalStyle
) -> None:
    for name in ("NO_COLOR", "LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "72", **environment}.items():
        monkeypatch.setenv(name, value)
    assert list_.terminal_style() == PLAIN
    monkeypatch.setattr(list_.sys.stdout, "isatty", lambda: True)
    assert list_.terminal_style() == style


def test_a_table_is_data_and_nothing_is_words(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row()])
    assert capsys.readouterr().err == ""
    print_rows([])
    nothing = capsys.readouterr()
    assert (nothing.out, nothing.err) == ("", "nothing is forwarded\n")


@pytest.mark.parametrize(
    ("host", "has_id", "loud"),
    [("0.0.0.0", True, True), ("::", True, True), ("192.168.1.5", True, True), ("0.0.0.0", False, False)]
    + [(host, True, False) for host in ("127.0.0.1", "127.0.0.2", "::1")],
)
def test_a_forward_that_others_can_reach_is_loud(host: str, has_id: bool, loud: bool) -> None:
    """What the engine publishes is none of ours."""
    changes = {"hostIp": host, "reason": "why", **({} if has_id else {"id": None})}
    shown = format_rows([row(**changes)], TerminalStyle(width=80, coloured=True)).splitlines()[-1]
    assert ("\x1b[31m\x1b[1m" in shown) is loud


def test_many_ignored_ports_of_one_reason_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def ignored(port: int, reason: str) -> dict[str, Any]:
        return row(port=port, id=None, localPort=None, status="ignored", reason=reason)

    many = [ignored(port, "onAutoForward is ignore") for port in (*range(3000, 3060), 8080)]
    few = [ignored(port, "excluded") for port in range(4000, 4005)]
    print_rows([row(), *many, *few])
    lines = capsys.readouterr().out.splitlines()
    assert sum("ignored" in line for line in lines) == 6
    assert lines[-1] == (
        "61 ports of web are ignored: onAutoForward is ignore (3000-3059, 8080). `autoforward list --all` shows them."
    )
    print_rows(many)
    assert len(capsys.readouterr().out.splitlines()) == 1
    print_rows([row(), *many, *few], everything=True)
    assert sum("ignored" in line for line in capsys.readouterr().out.splitlines()) >= 66


def test_port_whose_last_connection_was_refused_is_not_plainly_active() -> None:
    refused = row(lastRefusal="no such host", reason="no such host")
    table = str(format_rows([refused, row()]))
    assert cells(table.splitlines()[1])[-2:] == ["refusing", "5s"]
    assert "active" in table.splitlines()[3]
    assert str(format_rows([row(lastRefusal="no such host", status="reconnecting")])).count("reconnecting") == 1

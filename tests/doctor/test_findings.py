"""`autoforward doctor`: what a container says, read; what people and programs read of the findings."""

from __future__ import annotations

import re

import pytest

from autoforward.cli.commands.doctor import can_print, format_finding, print_findings, summary
from autoforward.doctor.container_checks import OwnersFacts
from autoforward.doctor.container_probe import is_noexec, parse_owners, parse_report
from autoforward.doctor.findings import fail, ok, warn
from tests.support.spec_text import names, sources

pytestmark = pytest.mark.unit

MOUNTS = b"""overlay / overlay rw,relatime 0 0
tmpfs /tmp tmpfs rw,noexec,nosuid 0 0
/dev/x /data ext4 rw 0 0
/dev/x /data/more ext4 rw,noexec 0 0
short
"""
LO6 = b"00000000000000000000000000000001 01 80 10 80       lo\n"


def test_the_report_of_a_container() -> None:
    mounts, has_ipv6 = parse_report(b"AF mounts\n" + MOUNTS + b"AF inet6\n" + LO6 + b"AF end\n")
    assert [place for place, _ in mounts] == ["/", "/tmp", "/data", "/data/more"]
    assert has_ipv6 is True
    noexec = {place: is_noexec(place, mounts) for place in ("/", "/tmp", "/tmp/x", "/tmpx", "/data", "/data/more/x")}
    assert noexec == {"/": False, "/tmp": True, "/tmp/x": True, "/tmpx": False, "/data": False, "/data/more/x": True}


@pytest.mark.parametrize(
    ("report", "has_ipv6"),
    [
        (b"AF mounts\nAF inet6\nAF end\n", False),
        (b"AF mounts\nAF inet6\n" + LO6, None),
        (b"AF mounts\n" + LO6, None),
        (b"", None),
        (b"\xff\xfe" * 1000, None),
    ],
)
def test_short_or_empty_report_is_read(report: bytes, has_ipv6: bool | None) -> None:
    assert parse_report(report)[1] is has_ipv6


# -- what people and programs read ---------------------------------------------------------------


def test_ids_are_those_of_the_specification() -> None:
    text = "".join(
        content for name, content in sources().items() if name.startswith(("doctor/", "cli/commands/doctor"))
    )
    ids = set(re.findall(r'\b(?:ok|warn|fail|found)\(\s*"([a-z0-9-]+)"', text))
    ids |= {f"lane-{lane}" for lane in ("socat", "nc", "devtcp")} | {"port-N", "port-N-udp"}
    assert set(names("doctor --json", "id")) == ids
    assert names("doctor --json", "key") == list(ok("engine", "x").to_json())


def test_a_finding_in_lines() -> None:
    finding = fail("engine", "a text of some words", "a way out of it")
    assert format_finding(finding, 120, unicode=True, coloured=False) == [
        "✗ engine           a text of some words",
        "                   → a way out of it",
    ]
    assert format_finding(finding, 20, unicode=False, coloured=False) == [
        "x engine: a text of",
        "  some words",
        "  > a way out of it",
    ]
    [line] = format_finding(ok("engine", "naïve"), 80, unicode=False, coloured=True)
    assert line == "\x1b[32m\x1b[1m+\x1b[0m engine: na?ve"


def test_signs_that_a_terminal_cannot_show() -> None:
    assert can_print("✓✗→", "utf-8")
    assert not can_print("✓", "ascii")
    assert not can_print("✓", None)
    assert not can_print("✓", "no-such-encoding")


def test_exit_code_and_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    good, odd, bad = ok("a", "x"), warn("b", "y"), fail("c", "z", "h")
    assert [print_findings(iter(found), False) for found in ([good], [good, odd], [good, odd, bad])] == [0, 0, 1]
    assert capsys.readouterr().out.count("\n") == 7
    assert summary([good]).strip() == "No problem found."
    assert summary([odd]).strip() == "No problem found; 1 warning."
    assert summary([odd, bad]).strip() == "1 problem found."
    assert print_findings(iter([bad]), True) == 1
    captured = capsys.readouterr()
    assert '"hint": "h"' in captured.out
    assert captured.err == ""


STATUS = b"Name:\tsh\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nCapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\n"
TABLE = (
    b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    b"   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4822 1 0 100 0 0 10 0\n"
    b"   1: 0100007F:0BB9 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4823 1 0 100 0 0 10 0\n"
)
OWNERS = b"AF mounts\nAF inet6\nAF end\n" + STATUS + b"AF sockets\n" + TABLE + b"AF done\n"


def test_owners_of_a_report() -> None:
    assert parse_owners(OWNERS) == OwnersFacts(0, 0xA80425FB, frozenset({1000}))
    for end in range(len(OWNERS)):
        assert parse_owners(OWNERS[:end]) is None
    assert parse_owners(OWNERS.replace(b"CapEff", b"CapXxx")) is None
    assert parse_owners(OWNERS.replace(b"a80425fb", b"a80425fb" * 20)) is None

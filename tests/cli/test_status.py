"""`autoforward status` for people: a line for what there is one of, a table of sessions, and what is wrong below it."""

from __future__ import annotations

from typing import Any

import pytest

from autoforward.cli.commands import status

pytestmark = pytest.mark.unit

AGENT = {"name": "agent", "dialect": "", "half_close": True, "udp": True, "note": "one process for everything"}
ON = {"on": True, "reason": None}
BASH = {"name": "devtcp", "dialect": "bash", "half_close": False, "udp": False, "note": "no agent: no C compiler"}


def session(**changes: Any) -> dict[str, Any]:
    usual = {
        "id": "ses-1",
        "container_name": "web",
        "state": "watching",
        "problem": None,
        "next_try_s": None,
        "config_problem": None,
        "forwards": 3,
        "lane": AGENT,
    }
    return usual | changes


def lines_of(capsys: pytest.CaptureFixture[str], *sessions: dict[str, Any], **changes: Any) -> list[str]:
    usual = {
        "version": "0.1.0",
        "pid": 7,
        "uptime_s": 3.4,
        "home": "/home/me/state",
        "engines": [{"host": "unix:///var/run/docker.sock", "source": "the default socket"}],
        "watches": [],
        "sessions": list(sessions),
    }
    status.print_status(usual | changes)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_healthy_sessions_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(capsys, session(), session(id="ses-2", container_name="a-longer-name", forwards=12, direct=ON)) == [
        "supervisor 0.1.0, pid 7, up 3 s, state in /home/me/state",
        "engine unix:///var/run/docker.sock (the default socket)",
        "",
        "CONTAINER      STATE     FORWARDS  LANE   CAN              DIRECT  SESSION",
        "web            watching         3  agent  half-close, UDP          ses-1",
        "a-longer-name  watching        12  agent  half-close, UDP  on      ses-2",
    ]


@pytest.mark.parametrize(
    ("changes", "remarks"),
    [
        ({"lane": BASH}, ["web: lane devtcp: no agent: no C compiler"]),
        ({"lane": None, "problem": "no lane works"}, ["web: no lane works"]),
        (
            {"direct": {"on": False, "reason": "api-dev shares the network bridge"}},
            ["web: direct: off: api-dev shares the network bridge"],
        ),
        ({"direct": {"on": True, "reason": "the setting says so"}}, ["web: direct: on: the setting says so"]),
        ({"problem": "the engine is away", "next_try_s": 1.25}, ["web: the engine is away (next try in 1.2 s)"]),
        (
            {"config_problem": "devcontainer.json:2:25: no value"},
            ["web: the configuration stays as it was: devcontainer.json:2:25: no value"],
        ),
    ],
)
def test_problems_are_below_the_table(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], remarks: list[str]
) -> None:
    assert lines_of(capsys, session(**changes))[5:] == remarks


def test_without_sessions_there_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    watch = {"selection": "dev containers", "engine": "unix:///run/x.sock", "sessions": 0, "problem": "not there"}
    assert lines_of(capsys, watches=[watch])[2:] == [
        "watch for dev containers on unix:///run/x.sock, 0 session(s): not there"
    ]


def test_text_from_elsewhere_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[31m[bold]:smile:\n" + "wide " * 60
    lines = lines_of(capsys, session(problem=hostile))
    assert lines[5:] == ["web: \ufffd[31m[bold]:smile:\ufffd" + ("wide " * 60).rstrip()], "one line, however long"

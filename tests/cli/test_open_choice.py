"""`autoforward open`: which forward is meant, whether anybody looks, and what is done with the URL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from autoforward.cli.commands import open_
from autoforward.cli.commands.open_ import choose, open_forward
from autoforward.cli.console import browser
from autoforward.cli.console.browser import no_browser_reason
from autoforward.config.environment import SessionEnvironment
from autoforward.core.errors import AutoforwardError, TargetError, UsageError
from tests.cli.test_listing import row
from tests.support.desktops import FakeBrowser

pytestmark = pytest.mark.unit

WEB = row(id="fwd-00000001", port=3000, localPort=3000, url="http://localhost:3000")
MOVED = row(id="fwd-00000002", port=3000, localPort=3001, url="http://localhost:3001", containerName="other")
UDP = row(id="fwd-00000003", port=5353, localPort=5353, transport="udp", url=None)
IGNORED = row(id=None, port=9229, localPort=None, url=None, status="ignored", reason="excluded")


def test_forward_is_found_by_id_and_by_either_port() -> None:
    rows = [WEB, MOVED, UDP, IGNORED]
    assert choose(rows, "fwd-00000002") is MOVED
    assert choose(rows, "3001") is MOVED
    assert choose(rows, "5353") is UDP
    assert choose(rows, "9229") is IGNORED
    assert choose([MOVED], "3000") is MOVED


def test_row_without_a_url_makes_no_port_ambiguous() -> None:
    assert choose([row(id="fwd-00000009", port=3000, localPort=3000, transport="udp", url=None), WEB], "3000") is WEB


def test_a_port_of_several_is_named_with_their_ids() -> None:
    with pytest.raises(UsageError) as error:
        choose([WEB, MOVED], "3000")
    assert "fwd-00000001" in str(error.value)
    assert "fwd-00000002" in str(error.value)


@pytest.mark.parametrize("wanted", ["fwd-0000000f", "1", "99999999999999999999", "٣٠٠٠", "", "-"])
def test_port_without_a_forward_is_an_error(wanted: str) -> None:
    with pytest.raises(TargetError):
        choose([WEB, UDP], wanted)


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, "display"),
        ({"DISPLAY": ":0"}, None),
        ({"WAYLAND_DISPLAY": "wayland-0"}, None),
        ({"BROWSER": "w3m"}, None),
        ({"AUTOFORWARD_BROWSER": "/bin/b"}, None),
        ({"AUTOFORWARD_BROWSER": "/bin/b", "CI": "1"}, "CI"),
    ],
)
def test_reasons_to_open_no_browser(variables: dict[str, str], why: str | None) -> None:
    said = no_browser_reason(SessionEnvironment.of(variables), "linux")
    assert (said is None) if why is None else (said is not None and why in said)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is forwarded; no desktop."""
    listed = [WEB]
    monkeypatch.setattr(open_.supervisor_client, "list_rows", lambda: listed)
    for name in ("CI", "DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "AUTOFORWARD_BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSH_CONNECTION", "the tests")
    return listed


def test_the_browser_is_given_the_url_alone(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = FakeBrowser(tmp_path)
    monkeypatch.setenv("AUTOFORWARD_BROWSER", str(browser.path))
    assert open_forward("3000") == 0
    assert browser.wait(1) == ["http://localhost:3000"]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("http://localhost:3000\n", "")


def test_url_is_printed_where_there_is_no_display(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_forward("3000") == 0
    captured = capsys.readouterr()
    assert captured.out == "http://localhost:3000\n"
    assert "no display" in captured.err
    assert "AUTOFORWARD_BROWSER" in captured.err


def test_browser_that_fails_or_is_missing_is_an_error(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFORWARD_BROWSER", str(tmp_path / "none"))
    with pytest.raises(AutoforwardError, match="cannot run"):
        open_forward("3000")
    failing = tmp_path / "failing"
    failing.write_text(f"#!{sys.executable} -IS\nraise SystemExit(7)\n")
    failing.chmod(0o755)
    monkeypatch.setenv("AUTOFORWARD_BROWSER", str(failing))
    monkeypatch.setattr(browser, "OPENER_PATIENCE_S", 60.0)
    with pytest.raises(AutoforwardError, match="status 7"):
        open_forward("3000")
    assert capsys.readouterr().out.count("http://localhost:3000\n") == 2


def test_forward_without_a_url_says_why(rows: list[dict[str, Any]]) -> None:
    rows[:] = [UDP, IGNORED, row(port=5432, localPort=15432, url=None, process=None, label=None)]
    with pytest.raises(AutoforwardError, match="it speaks PostgreSQL, on localhost:15432"):
        open_forward("5432")
    with pytest.raises(AutoforwardError, match="UDP"):
        open_forward("5353")
    with pytest.raises(AutoforwardError, match="excluded"):
        open_forward("9229")


def test_foreign_url_is_never_opened(rows: list[dict[str, Any]]) -> None:
    rows[:] = [row(url="file:///etc/passwd")]
    with pytest.raises(AutoforwardError, match="no URL"):
        open_forward("3000")


def test_a_forward_that_waits_is_opened_with_a_warning(
    rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows[:] = [{**WEB, "status": "waiting"}]
    assert open_forward("3000") == 0
    assert "is waiting" in capsys.readouterr().err

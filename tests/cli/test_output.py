"""What people read: one line a port, errors and hints in one form, flags that are checked where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from autoforward.cli.console import output
from autoforward.cli.console.session_flags import SessionFlags
from autoforward.config.session_record import SessionOptions
from autoforward.core.errors import (
    AutoforwardError,
    EngineUnreachableError,
    PortUnavailableError,
    TargetError,
    UsageError,
)
from autoforward.core.model import ON_THE_HOST
from autoforward.core.setting_values import PortFilter
from autoforward.core.settings import Settings
from tests.cli.test_listing import row

pytestmark = pytest.mark.unit


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "words for people go to stderr"
    return captured.err.splitlines()


# -- ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "127.0.0.1:3000 -> web:3000"),
        ({"localPort": 3001}, "127.0.0.1:3001 -> web:3000"),
        ({"label": "shop"}, "127.0.0.1:3000 -> web:3000 [shop]"),
        ({"hostIp": "::1"}, "[::1]:3000 -> web:3000"),
        ({"containerHost": "db", "port": 5432}, "127.0.0.1:3000 -> db:5432 (through web)"),
        ({"transport": "udp"}, "127.0.0.1:3000 -> web:3000/udp"),
        ({"containerHost": "::"}, "127.0.0.1:3000 -> web:3000"),
    ],
)
def test_addresses_of_a_forward_in_its_line(changes: dict[str, Any], line: str) -> None:
    assert output.describe_mapping(row(**changes)) == line


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["Forwarding 127.0.0.1:3000 -> web:3000"]),
        (
            {"localPort": 3001, "reason": "host port 3000 is in use"},
            ["Forwarding 127.0.0.1:3001 -> web:3000 (host port 3000 is in use)"],
        ),
        (
            {"status": "reconnecting", "reason": "the container is paused"},
            ["Reconnecting 127.0.0.1:3000 -> web:3000 (the container is paused)"],
        ),
        ({"status": "waiting"}, ["Waiting    127.0.0.1:3000 -> web:3000 (refused until its server is up)"]),
        (
            {"status": "published", "reason": "published by the engine on 0.0.0.0:8300"},
            ["Published  web:3000, published by the engine on 0.0.0.0:8300"],
        ),
        ({"status": "ignored", "reason": "excluded"}, []),
        ({"onAutoForward": "silent"}, []),
        ({"onAutoForward": "ignore"}, []),
        (
            {"status": "failed", "reason": "no lane", "localPort": None, "onAutoForward": "silent"},
            ["autoforward: warning: port 3000 of web is not forwarded: no lane"],
        ),
    ],
)
def test_each_port_is_one_line(capsys: pytest.CaptureFixture[str], changes: dict[str, Any], lines: list[str]) -> None:
    output.print_mappings([row(**changes)])
    assert said(capsys) == lines


IGNORED = {"status": "ignored", "reason": "onAutoForward is ignore"}
HERE = "Watching web: what starts to listen there is forwarded."
WAY = "`autoforward list` shows it."


@pytest.mark.parametrize(
    ("rows", "auto", "lines"),
    [
        ([], True, [f"{HERE} Nothing listens there yet. {WAY}"]),
        ([], False, [f"Watching web: only declared ports are forwarded. {WAY}"]),
        ([{}], True, []),
        ([{"status": "waiting"}, IGNORED], True, []),
        ([{"status": "failed", "onAutoForward": "silent"}], True, []),
        (
            [{"onAutoForward": "silent"}],
            True,
            [f"{HERE} Ports there now: 1 without a line of their own (onAutoForward). {WAY}"],
        ),
        (
            [*[IGNORED] * 60, {"status": "ignored", "reason": "excluded"}],
            True,
            [f"{HERE} Ports there now: 61 ignored (60 onAutoForward is ignore; 1 excluded). {WAY}"],
        ),
        (
            [{"status": "ignored", "reason": str(number)} for number in range(5)],
            True,
            [f"{HERE} Ports there now: 5 ignored (1 0; 1 1; 1 2; 2 for other reasons). {WAY}"],
        ),
        ([{"port": None, "status": "ignored", "reason": ON_THE_HOST}], True, []),
        # What is asked for and not granted is a warning, and no port.
        (
            [{"port": None, "status": "ignored", "reason": "it asks for bind"}],
            True,
            [f"{HERE} Nothing listens there yet. {WAY}"],
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_attach_without_a_port_says_what_it_watches(
    capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], auto: bool, lines: list[str]
) -> None:
    """Seen: where everything is ignored, or no server is up yet, `devup` and `attach` said nothing at all."""
    output.say_watching("web", [row(**changes) for changes in rows], auto=auto)
    assert said(capsys) == lines


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (AutoforwardError, 1),
        (UsageError, 2),
        (EngineUnreachableError, 3),
        (TargetError, 4),
        (PortUnavailableError, 5),
        (lambda text, hint: click.UsageError(text), 2),
        (lambda text, hint: click.BadParameter(text), 2),
        (lambda text, hint: click.ClickException(text), 1),
    ],
)
def test_every_error_has_its_exit_code_and_its_line(kind: Any, exit_code: int) -> None:
    @click.command(cls=output.Command)
    def fails() -> None:
        raise kind("The thing broke", hint="mend it")

    result = CliRunner().invoke(fails, prog_name="fails")
    assert result.exit_code == exit_code
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert first.startswith("autoforward: error: ")
    assert first.endswith("he thing broke")
    assert all(line.startswith("autoforward: hint: ") for line in rest)


def test_the_status_that_a_command_returns_is_the_programs() -> None:
    @click.command(cls=output.Command)
    def returns() -> int:
        return 4

    assert CliRunner().invoke(returns).exit_code == 4


def test_warnings_say_their_hint(capsys: pytest.CaptureFixture[str]) -> None:
    output.warn("it rains", hint="take an umbrella")
    assert said(capsys) == ["autoforward: warning: it rains", "autoforward: hint: take an umbrella"]


# -- flags ---------------------------------------------------------------------------------------


def flags_of(*argv: str, no_auto: bool = True) -> Any:
    @click.command(cls=output.Command)
    @output.session_options(no_auto=no_auto)
    @output.engine_options
    def takes(flags: SessionFlags, docker_host: str | None, context: str | None) -> None:
        taken.append((flags, docker_host, context))

    taken: list[Any] = []
    result = CliRunner().invoke(takes, argv)
    return taken[0] if taken else (result.exit_code, result.stderr)


def test_flags_become_settings() -> None:
    assert flags_of() == (SessionFlags(), None, None)
    argv = ["--lane", "nc", "--bind", "0.0.0.0", "--exclude", "1,2-3", "--exclude", "9", "--poll-interval", "2"]
    argv += ["--no-auto", "--auto-udp", "--no-direct", "--settings", "/a/b.toml"]
    argv += ["--docker-host", "tcp://x", "--context", "c"]
    given = Settings(
        lane="nc",
        bind="0.0.0.0",
        exclude=PortFilter(((1, 1), (2, 3), (9, 9))),
        poll_interval_s=2.0,
        direct=False,
        auto=False,
    )
    assert flags_of(*argv) == (SessionFlags(given, "/a/b.toml", True), "tcp://x", "c")


def test_a_flag_that_is_not_given_leaves_it_to_the_next_layer() -> None:
    assert flags_of("--lane", "auto")[0].given == Settings(lane="auto")
    assert flags_of("--poll-interval", "0.5", no_auto=False)[0].given == Settings(poll_interval_s=0.5)


def test_a_settings_file_is_of_the_folder_that_the_command_runs_in() -> None:
    assert flags_of("--settings", "x.toml")[0].settings_file == str(Path.cwd() / "x.toml")


def test_addresses_are_in_their_usual_form() -> None:
    assert flags_of("--bind", "0:0:0:0:0:0:0:1")[0].given.bind == "::1"
    for text in ("localhost", "1.2.3", "", "127.0.0.1:80"):
        exit_code, words = flags_of("--bind", text)
        assert exit_code == 2
        assert repr(text) in words


def test_forward_detects_nothing_so_it_has_no_such_flag() -> None:
    assert flags_of("--no-auto", no_auto=False)[0] == 2
    assert flags_of("--auto", no_auto=False)[0] == 2
    assert flags_of(no_auto=False)[0].given.auto is None


def test_detection_is_said_once() -> None:
    assert flags_of("--auto")[0].given == Settings(auto=True)
    assert flags_of("--no-auto")[0].given == Settings(auto=False)
    assert flags_of()[0].given == Settings()
    assert flags_of("--auto", "--no-auto") == (2, "autoforward: error: --auto and --no-auto exclude each other\n")


@pytest.mark.parametrize(
    ("bind", "loud"),
    [(None, False), ("127.0.0.1", False), ("::1", False), ("127.0.0.5", False), ("0.0.0.0", True), ("::", True)],
)
def test_binding_elsewhere_than_on_loopback_is_said_loudly(
    capsys: pytest.CaptureFixture[str], bind: str | None, loud: bool
) -> None:
    output.warn_of_bind(SessionOptions(bind=bind))
    lines = said(capsys)
    assert len(lines) == loud
    assert all(bind is not None and bind in line and line.startswith("autoforward: warning: ") for line in lines)


def test_url_to_click_is_printed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert output.describe_mapping(row(url="http://localhost:3000")) == "http://localhost:3000 -> web:3000"
    assert output.describe_mapping(row(url=None)) == "127.0.0.1:3000 -> web:3000"


def test_detach_counts_what_was_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoforward.cli.main import main

    rows = [row(), row(id=None, status="ignored", localPort=None)]
    monkeypatch.setattr(
        "autoforward.cli.console.supervisor_client.detach",
        lambda *_args, **_how: {"rows": rows, "sessions": ["ses-1"]},
    )
    assert CliRunner().invoke(main, ["detach", "web"]).output == "Ended 1 session(s), 1 port(s).\n"

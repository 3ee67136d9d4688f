"""One door for text of others: what is printed, what is logged, what is drawn. Nothing else writes, and through it
comes nothing but printable characters and ends of lines."""

from __future__ import annotations

import ast
import io
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoforward.cli.commands import status as reporting
from autoforward.cli.commands.doctor import format_finding
from autoforward.cli.console import output, printing
from autoforward.cli.terminal.live_view import View, draw
from autoforward.cli.terminal.table import TerminalStyle, format_rows
from autoforward.core.errors import AutoforwardError
from autoforward.core.log_records import MAX_TRACEBACK_LINES, line_handler
from autoforward.core.text import MAX_LINE, one_line
from autoforward.doctor.findings import fail
from autoforward.state.event_log import MAX_EVENT_TEXT, MAX_FOLDER_TEXT, PortEvent, encode_line
from autoforward.supervisor.event_hub import log_line
from tests.cli.test_listing import row
from tests.cli.test_status import session
from tests.product.test_layers import MODULES

pytestmark = pytest.mark.unit

NASTY = "\x1b[2J\x1b]0;owned\x07\n2026-01-01 00:00:00,000 INFO forged\r\t\x9b31m\x85\u2028\u202e\u2066\u200b\ufeff\udc80\x7f\0"
TEXT = st.text(st.one_of(st.sampled_from(NASTY), st.characters(categories=None)), max_size=80)  # fmt: skip


def controls(text: str) -> set[str]:
    """What may not stand in lines."""
    return {char for char in text if char != "\n" and not char.isprintable()}


# -- nothing else writes -------------------------------------------------------------------------

PRINTS = "cli.console.printing"
DRAWS = {"cli.terminal.table", "cli.commands.doctor"}
"""Who makes lines with escape sequences, out of texts that have been filtered."""
SCREEN = "cli.terminal.screen"
"""Writes to the terminal's descriptor what `live_view` has drawn."""
PIPES = {"foreign.child"}
"""A process whose standard output is a pipe of ours."""
LOGS = {"cli.console.output", "supervisor.__main__"}
"""Who says where records go: to handlers of `core.log_records`."""
DROPS = {"desktop.notifier"}
"""Who keeps none."""
ASKED_OF_A_STREAM = {"isatty", "fileno", "encoding", "errors", "reconfigure"}


def printing_in(source: str) -> set[str]:
    """What in it writes to standard output or error, as `print`, `click.echo`, `sys.stdout`; and `Drawn`, `log handlers`."""
    found = set()
    tree = ast.parse(source)
    above = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        outer = above.get(id(node))
        if text in ("print", "input", "breakpoint") and isinstance(node, ast.Name):
            found.add("print")
        elif text in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"):
            if not (isinstance(outer, ast.Attribute) and outer.attr in ASKED_OF_A_STREAM):
                asked = isinstance(outer, ast.Call) and ast.unparse(outer.func) == "isinstance"
                compared = isinstance(outer, ast.Compare)
                found |= set() if asked or compared else {"sys.stdout"}
        elif text in ("click.echo", "click.secho", "click.echo_via_pager", "click.prompt", "click.confirm"):
            found.add("click.echo")
        elif text in ("traceback.print_exc", "traceback.print_exception", "warnings.warn", "faulthandler.enable"):
            found.add("print")
        elif text in ("os.write", "os.writev"):
            found.add("os.write")
        elif text == "Drawn" and isinstance(outer, ast.Call) and outer.func is node:
            found.add("Drawn")
        elif text.startswith("logging.") and text.split(".")[-1] in LOG_WAYS:
            found.add("log handlers")
        elif isinstance(node, ast.ImportFrom) and node.module in ("sys", "click", "logging"):
            # by another name the rest of this would not see it
            wrong = {alias.name for alias in node.names} & {"stdout", "stderr", "echo", "secho", "basicConfig"}
            found |= {"sys.stdout"} if wrong else set()
        elif text == "Console" and isinstance(outer, ast.Call) and outer.func is node:
            found |= set() if "file" in {keyword.arg for keyword in outer.keywords} else {"print"}
    return found


LOG_WAYS = {
    "basicConfig",
    "StreamHandler",
    "FileHandler",
    "RotatingFileHandler",
    "Formatter",
    "lastResort",
    "addHandler",
}

CALL_SITES = [
    ("print(x)", "print"),
    ("sys.stdout.write(x)", "sys.stdout"),
    ("out = sys.stderr", "sys.stdout"),
    ("sys.stdout.buffer.write(x)", "sys.stdout"),
    ("print(x, file=f)", "print"),
    ("click.echo(x)", "click.echo"),
    ("from click import echo", "sys.stdout"),
    ("from sys import stdout", "sys.stdout"),
    ("Console().print(x)", "print"),
    ("os.write(1, x)", "os.write"),
    ("say = print", "print"),
    ("Drawn(x)", "Drawn"),
    ("logging.StreamHandler()", "log handlers"),
    ("logging.handlers.RotatingFileHandler(x)", "log handlers"),
]


@pytest.mark.parametrize(("source", "found"), CALL_SITES)
def test_every_way_to_print_is_seen(source: str, found: str) -> None:
    assert found in printing_in(source)


def test_there_is_one_door_for_what_is_printed() -> None:
    """No call site can forget to filter: whatever prints, and is not the door, fails here."""
    found = {module: printing_in(path.read_text()) for module, path in MODULES.items()}
    assert found.pop(PRINTS) == {"click.echo", "sys.stdout"}
    assert {module for module, ways in found.items() if ways & {"print", "click.echo", "sys.stdout"}} == set()
    assert {module for module, ways in found.items() if "Drawn" in ways} == DRAWS
    # Elsewhere it is for files and pipes, but for descriptors that are known by their number.
    assert {module for module, ways in found.items() if "os.write" in ways and module.startswith("cli.")} == {SCREEN}
    written = {module for module, path in MODULES.items() if re.search(r"os\.writev?\([12]\b", path.read_text())}
    assert written == PIPES


def test_there_is_one_door_for_what_is_logged() -> None:
    found = {module: printing_in(path.read_text()) for module, path in MODULES.items()}
    assert found.pop("core.log_records") == {"log handlers"}
    assert {module for module, ways in found.items() if "log handlers" in ways} == LOGS | DROPS
    for module in LOGS:
        assert "line_handler(" in MODULES[module].read_text()


# -- lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x1b[31m\x9b", "\\x1b[31m\\x9b"),
        ("x\u202ey\u200b", "x\\u202ey\\u200b"),
        ("10\xa0000", "10 000"),
        ("\udcff", "\\udcff"),
        ("x" * (MAX_LINE + 1), "x" * (MAX_LINE - 1) + "…"),
    ],
)
def test_text_is_made_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


@given(TEXT)
def test_a_line_is_one_of_bounded_length(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text * 100)) <= MAX_LINE
    assert one_line(one_line(text)) == one_line(text)


# -- what is printed -----------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert controls(captured.out + captured.err) == set()
    return (captured.out + captured.err).splitlines()


def test_texts_of_others_stay_in_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(NASTY)
    output.warn(NASTY, hint=NASTY)
    output.fail(AutoforwardError(NASTY, hint=NASTY))
    printing.show(NASTY)
    printing.show_json({NASTY: NASTY})
    for status in ("active", "waiting", "failed", "published"):
        output.print_mappings([row(status=status, reason=NASTY, containerName=NASTY, label=NASTY)])
    lines = printed(capsys)
    assert len(lines) == 13
    assert not any(line.startswith("2026") for line in lines)


def test_the_status_of_sessions_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    one = session(container_name=NASTY, problem=NASTY, config_problem=NASTY, id=NASTY)
    watch = {"selection": NASTY, "engine": NASTY, "sessions": 1, "problem": NASTY}
    reporting.print_status(
        {
            "version": "1",
            "pid": 1,
            "uptime_s": 1.0,
            "home": NASTY,
            "engines": [{"host": NASTY, "source": NASTY}],
            "watches": [watch],
            "sessions": [one],
        }
    )
    assert len(printed(capsys)) == 8


# -- what is drawn -------------------------------------------------------------------------------

LOOK = TerminalStyle(width=100, coloured=True, links=True)
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;(?:http://localhost:\d+)?\x1b\\")
"""Colours, and links to where a forward listens."""


@given(TEXT, st.sampled_from(["active", "failed", "ignored"]))
def test_tables_and_the_live_screen_hold_no_sequences_but_ours(text: str, status: str) -> None:
    texts = dict.fromkeys(("containerName", "service", "process", "label", "reason", "containerHost", "hostIp"), text)
    rows = [row(status=status, **texts), row(url=text or None, id=None)]
    view = View(note=text)
    view.update(rows)
    for drawn in (format_rows(rows, LOOK), "\n".join(draw(view, LOOK, 30))):
        assert controls(OURS.sub("", drawn)) == set()
    finding = fail("container", text, hint=text)
    assert controls(OURS.sub("", "\n".join(format_finding(finding, 90, unicode=True, coloured=True)))) == set()


# -- what is logged ------------------------------------------------------------------------------


def logged(call: Any) -> str:
    stream = io.StringIO()
    log = logging.Logger("autoforward.mux")
    log.addHandler(line_handler(logging.StreamHandler(stream), "%(asctime)s %(levelname)s %(name)s: %(message)s"))
    call(log)
    return stream.getvalue()


RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \w+ autoforward\.mux: ")


@given(TEXT)
def test_a_record_is_one_line(text: str) -> None:
    for call in (
        lambda log: log.info("agent: %s", text),
        lambda log: log.info(text.replace("%", "")),
        lambda log: log.warning("%s", AutoforwardError(text)),
    ):
        lines = logged(call)
        assert controls(lines) == set()
        assert lines.count("\n") == 1


@given(TEXT)
def test_no_line_of_a_traceback_can_be_taken_for_a_record(text: str) -> None:
    def fails(log: logging.Logger) -> None:
        try:
            raise AutoforwardError(f"{text}\n2026-01-01 00:00:00,000 INFO autoforward.mux: forged")
        except AutoforwardError:
            log.exception("a fault: %s", text, stack_info=True)

    lines = logged(fails)
    assert controls(lines) == set()
    first, *rest = lines.splitlines()
    assert RECORD.match(first)
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_a_record_is_bounded() -> None:
    def fails(log: logging.Logger) -> None:
        try:
            raise AutoforwardError("x\n" * 100_000 + "y" * 100_000)
        except AutoforwardError:
            log.exception("z" * 100_000)

    lines = logged(fails).splitlines()
    assert len(lines) <= MAX_TRACEBACK_LINES + 2
    assert max(map(len, lines)) <= MAX_LINE + 4
    assert lines[-1].endswith("y…")


# -- events --------------------------------------------------------------------------------------


@given(TEXT)
def test_an_event_is_one_line_and_bounded(text: str) -> None:
    names = ("label", "description", "id", "container_id", "container_name", "workspace_folder", "service", "reason")
    event = PortEvent(event="forwarded", **dict.fromkeys(names, text * 200), process=text)  # type: ignore[arg-type]
    line = encode_line(event)
    assert line.isascii()
    assert controls(line) == set()
    values = event.to_json()
    assert len(values["workspaceFolder"] or "") <= MAX_FOLDER_TEXT
    assert max(len(values[name] or "") for name in ("label", "containerName", "service", "reason")) <= MAX_EVENT_TEXT
    assert one_line(log_line(event)).isprintable()

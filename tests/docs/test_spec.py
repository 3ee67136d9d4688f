"""SPEC.md is normative: its commands, names and numbers against the code, in both directions.

The formats (files, events, protocols) are in `test_spec_formats.py`.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections import Counter
from functools import cache
from typing import Any, cast

import click
import pytest

from autoforward.cli import devdown, devup, main
from autoforward.cli.console import output
from autoforward.config.environment import SESSION_VARIABLES
from autoforward.config.session_record import SessionOptions
from autoforward.control.start import KEPT_ENVIRONMENT
from autoforward.core import budget
from autoforward.core.choices import LANE_CHOICES
from autoforward.core.errors import ERRORS_BY_EXIT_CODE
from autoforward.core.model import ON_AUTO_FORWARD, ForwardKey
from autoforward.core.port_spec import MAX_RANGE_SIZE, parse_port_spec
from autoforward.core.setting_values import HIGHEST_MAX_PORTS, MAX_WAIT_FOR_SERVER_S
from autoforward.core.settings import KEYS
from autoforward.dataplane.mux.multiplexer import LEAST_CREDIT_BYTES
from autoforward.detection.known_servers import (
    DEFAULT_EXCLUDED,
    INSPECTOR_PORTS,
    OUR_AGENT,
    OUR_SUPERVISOR,
    exclusion_reason,
)
from autoforward.devcontainers.port_attributes import parse_attributes
from tests.docs.spec_limits import BUDGETS, LIMITS, REPEATED
from tests.support.spec_text import SPEC, names, section, sources, table, tables, ticked

pytestmark = pytest.mark.unit


def commands_below(name: str, group: click.Group) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for word, command in group.commands.items():
        found[f"{name} {word}"] = command
        if isinstance(command, click.Group):
            found |= commands_below(f"{name} {word}", command)
    return found


PROGRAMS: dict[str, click.Command] = {
    "autoforward": main.main,
    "devup": devup.main,
    "devdown": devdown.main,
    **commands_below("autoforward", main.main),
}

# Commands.


def flags_of(command: click.Command) -> set[str]:
    return {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


def flags_in(title: str) -> set[str]:
    return {name.split()[0] for name in names(title, "flag")}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_flag_of_a_command_is_in_its_section_and_no_other(name: str) -> None:
    def plain() -> None: ...

    command = PROGRAMS[name]
    of_session = flags_of(click.command()(output.session_options()(plain)))
    of_engine = flags_of(click.command()(output.engine_options(plain)))
    own = section(name).split("\n### ", 1)[0]
    documented = flags_in(name) if "| flag |" in own else set()
    if "flags of a session" in own:
        without = re.search(r"flags of a session \(without ([^)]*)\)", own)
        documented |= of_session - set(ticked(without[1]) if without else ())
    if "of the engine" in own:
        documented |= of_engine
    assert documented == flags_of(command)


def test_the_shared_flags_are_those_of_the_shared_tables() -> None:
    def plain() -> None: ...

    shared = flags_of(click.command()(output.engine_options(output.session_options()(plain))))
    tables = section("Flags of a session")
    assert set(re.findall(r"^\| `(--[a-z-]+)", tables, re.MULTILINE)) == shared


def test_every_command_has_a_section_and_no_other() -> None:
    headings = re.findall(r"^### (autoforward(?: [a-z]+)*|devup|devdown)$", SPEC, re.MULTILINE)
    assert sorted(headings) == sorted(PROGRAMS)


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "autoforward"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = PROGRAMS[name]
    assert "Example" in command.get_help(click.Context(command, info_name=name))


def test_exit_codes() -> None:
    assert [int(row[0]) for row in table("Exit codes", "code")] == sorted({0, *ERRORS_BY_EXIT_CODE})


def test_exit_codes_of_the_failure_table_are_documented_ones() -> None:
    given = {row[2] for row in table("Failures", "what happens")} - {"", "the CLI's"}
    assert {int(code) for code in given} == {0, *ERRORS_BY_EXIT_CODE}


def test_lane_choices() -> None:
    row = next(row for row in table("Flags of a session", "flag") if row[0] == "`--lane LANE`")
    assert set(ticked(row[1])) == set(LANE_CHOICES)


FORMS = {
    "N": "3000",
    "LOCAL:REMOTE": "8080:80",
    "HOST:PORT": "db:5432",
    "LOCAL:HOST:REMOTE": "5433:db:5432",
    "A-B": "3000-3005",
    "A-B:C-D": "8000-8005:3000-3005",
}


def test_forms_of_a_spec() -> None:
    assert names("SPEC", "form") == list(FORMS)
    for example in FORMS.values():
        for suffix in ("", "/tcp", "/udp"):
            assert parse_port_spec(example + suffix)
    assert f"at most {MAX_RANGE_SIZE}" in section("SPEC")


# Configuration.


def test_attributes() -> None:
    documented = names("Configuration", "attribute")
    values: dict[str, Any] = {
        "label": "x",
        "protocol": "https",
        "onAutoForward": "silent",
        "requireLocalPort": True,
        "elevateIfNeeded": True,
        "description": "x",
        "openPreview": True,
    }
    rules, warnings = parse_attributes({"3000": values}, None, "here")
    assert not warnings
    assert sorted(documented) == sorted(rules.to_json()["portsAttributes"]["3000"])
    row = next(row for row in table("Configuration", "attribute") if row[0] == "`onAutoForward`")
    assert set(ticked(row[1])) == set(ON_AUTO_FORWARD)


def test_configuration_keys_are_read() -> None:
    text = sources()["devcontainers/configuration.py"]
    assert all(f'"{key}"' in text for key in names("Configuration", "key"))


def test_settings() -> None:
    rows = {ticked(row[0])[0]: row for row in table("Settings", "setting")}
    assert list(rows) == list(KEYS)
    assert {name: (ticked(row[3]) or [None])[0] for name, row in rows.items()} == {
        name: key.variable for name, key in KEYS.items()
    }
    defaults = SessionOptions()
    for name, value in (
        ("maxPorts", defaults.max_ports),
        ("pollInterval", defaults.poll_interval_s),
        ("lane", f"`{defaults.lane}`"),
        ("notify", str(defaults.notify).lower()),
        ("defaultExclude", str(defaults.default_exclude).lower()),
        ("waitForServer", f"{defaults.wait_for_server_s:g}"),
    ):
        assert rows[name][2] == str(value)
    assert f"1 to {HIGHEST_MAX_PORTS}" in rows["maxPorts"][1]
    assert f"0 to {MAX_WAIT_FOR_SERVER_S:g}:" in rows["waitForServer"][1]
    assert (rows["direct"][2], defaults.direct) == ("as the networks are", None)


# Numbers and names.


@cache
def constants() -> dict[str, float]:
    """Every number that a module of the package gives a name in capitals, as `module.NAME` (units of a timedelta: days)."""
    found: dict[str, float | None] = {}
    for path, text in sources().items():
        if not path.endswith(".py"):
            continue
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        tree = ast.parse(text)
        times = [
            node.body
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name in ("Times", "SessionLimits")
        ]
        for node in itertools.chain(tree.body, *times):
            match node:
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if node not in tree.body:
                    found[f"{module}.{name.upper()}"] = number(value)
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                    found[f"{module}.{name}"] = number(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name.isupper():
                    found[f"{module}.{name}"] = number(value)
    return {name: value for name, value in found.items() if value is not None}


def number(node: ast.expr) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            factors = number(left), number(right)
            return None if None in factors else math.prod(cast(tuple[float, float], factors))
    return None


LIMIT_ROWS = [row for rows in tables("Limits and times", "limit") for row in rows]
UNITS = {"": 1, "s": 1, "days": 86400, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20}


def amount(cell: str) -> float:
    """`10`, `0.5 s` or `64 KiB` as a plain number, of seconds or bytes where it has a unit."""
    digits, _, unit = cell.partition(" ")
    return float(digits) * UNITS[unit]


def test_every_limit_is_one_constant_of_the_code() -> None:
    assert [row[0] for row in LIMIT_ROWS] == list(LIMITS)
    assert len(set(LIMITS.values())) == len(LIMITS)


@pytest.mark.parametrize(("words", "cell"), LIMIT_ROWS, ids=[row[0] for row in LIMIT_ROWS])
def test_limits_have_the_value_of_the_code(words: str, cell: str) -> None:
    values = [value for name, value in constants().items() if f".{name}".endswith(f".{LIMITS[words]}")]
    assert values == [amount(cell)]


def test_the_norm_names_no_module_and_no_constant() -> None:
    assert not re.findall(r"autoforward/[a-z_/]+\.py|`[a-z_]+\.[A-Z_]+`|agent/\w+\.[ch]", SPEC)
    internal = {name.rpartition(".")[2] for name in constants()}
    assert not internal & set(re.findall(r"`([A-Z][A-Z_]+)`", SPEC))


def forms(cell: str) -> str:
    """What finds the amount in prose: `0.5 s` also as `500 ms`; without a unit no longer number, and no other amount."""
    digits, _, unit = cell.partition(" ")
    if not unit:
        return rf"(?<![\d.,]){digits}(?![.,]?\d)(?! (?:s|ms|min|KiB|MiB|MB|bytes|days)\b)"
    also = [f"{float(digits) * 1000:.0f} ms"] if unit == "s" else []
    return rf"(?<![\d.,])(?:{'|'.join(map(re.escape, [cell, *also]))})\b"


@pytest.mark.parametrize("title", REPEATED)
def test_numbers_that_a_section_repeats_are_those_of_the_table(title: str) -> None:
    """As often as it repeats limits of that amount; a change of the constant has to reach the prose."""
    cells = {LIMITS[words]: cell for words, cell in LIMIT_ROWS}
    text = " ".join(section(title).split())
    for cell, count in Counter(cells[name] for name in REPEATED[title]).items():
        assert len(re.findall(forms(cell), text)) >= count, cell


def test_environment_variables() -> None:
    text = "".join(sources().values())
    ours = set(re.findall(r"\bAUTOFORWARD_[A-Z_]+\b", text))
    read = set(re.findall(r"""environ(?:\.get\(|\[)"([A-Z_]+)\"""", text))
    documented = set(names("Environment variables", "variable"))
    assert documented == ours | read
    kept = section("Environment variables").rpartition("The supervisor keeps")[2]
    assert ticked(kept) == list(KEPT_ENVIRONMENT)
    of_a_session = section("Environment variables").partition("A session keeps")[2].partition(" of the command")[0]
    assert ticked(of_a_session) == list(SESSION_VARIABLES)


def test_actions() -> None:
    assert {name for row in table("Actions", "`onAutoForward`") for name in ticked(row[0])} == set(ON_AUTO_FORWARD)
    debuggers = section("Actions").partition("**Debuggers' ports**: ")[2].partition(".")[0]
    assert {int(number) for number in debuggers.split(", ")} == INSPECTOR_PORTS


def test_known_servers() -> None:
    rows = table("What is there already", "known server")
    servers = (*DEFAULT_EXCLUDED, OUR_AGENT, OUR_SUPERVISOR)
    assert [row[0] for row in rows] == [server.name for server in servers]
    for row, server in zip(rows, servers, strict=True):
        match server.ports:
            case None:
                assert row[2] == "any"
            case range():
                assert row[2] == f"{server.ports[0]} to {server.ports[-1]}"
            case ports:
                assert row[2] == ", ".join(map(str, sorted(ports)))
    for row in rows[:3]:
        for folder in ticked(row[1]):
            if folder not in ("server-main.js", "-insiders"):
                assert exclusion_reason(ForwardKey("tcp", None, 40000), f"/root/{folder}/bin/x/node x") == row[0]


def test_budgets_of_work_are_those_of_the_code() -> None:
    limits = {name: value for name, value in vars(budget).items() if isinstance(value, budget.Limit)}
    rows = table("Budgets of work", "budget")
    assert [row[0] for row in rows] == list(BUDGETS)
    assert list(BUDGETS.values()) == list(limits)
    for (_name, _whose, _units, rate, burst, over), limit in zip(rows, limits.values(), strict=True):
        assert (float(rate), float(burst)) == (limit.rate, limit.burst)
        assert ("fails" in over) == (limit.patience_s == budget.PATIENCE_S) == (limit.patience_s < math.inf)
    assert f"CREDIT of less than {LEAST_CREDIT_BYTES:,} bytes" in section("Budgets of work")


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-")


def test_contents_link_every_section_in_order() -> None:
    headings = [title for title in re.findall(r"^##(?:#)? (.*)$", SPEC, re.MULTILINE) if title != "Contents"]
    links = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", section("Contents"))
    assert links == [(title, anchor(title)) for title in headings]
    assert len({anchor(title) for title in headings}) == len(headings)


def test_links_within_lead_to_headings() -> None:
    anchors = {anchor(title) for title in re.findall(r"^#+ (.*)$", SPEC, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", SPEC)) <= anchors

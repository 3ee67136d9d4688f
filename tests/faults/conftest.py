"""Faults on a real engine: every test here is marked `docker`, and says in a table at the end what the user saw."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.report import Fault, Report

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.docker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.stats.get(kind, [])]
    said = [
        facts
        for report in sorted(reports, key=lambda report: report.nodeid)
        if report.when == "call"
        for name, facts in report.user_properties
        if name == "fault"
    ]
    if said:
        terminalreporter.section("faults")
        for line in Report([Fault.from_json(facts) for facts in said]).lines():
            terminalreporter.write_line(line)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Callable[[str], Fault]:
    """A row of the table: `fault("what happens")`. What was seen of it shows even when the test fails."""

    def make(name: str) -> Fault:
        one = Fault(name)
        request.node.faults = [*getattr(request.node, "faults", []), one]
        return one

    return make


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    if call.when == "call":
        for one in getattr(item, "faults", []):
            if one.saw or one.connections:
                item.user_properties.append(("fault", one.to_json()))
    return (yield)

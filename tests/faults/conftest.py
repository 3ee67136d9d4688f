"""Faults on a real engine: every test here is marked `docker`, and says in a table at the end what the user saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.report import Fault, Report

HERE = Path(__file__).parent
REPORT = Report()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.docker)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REPORT.faults:
        terminalreporter.section("faults")
        for line in REPORT.lines():
            terminalreporter.write_line(line)


@pytest.fixture
def fault() -> Iterator[Callable[[str], Fault]]:
    """A row of the table: `fault("what happens")`. What was seen of it shows even when the test fails."""
    made: list[Fault] = []

    def make(name: str) -> Fault:
        made.append(Fault(name))
        return made[-1]

    yield make
    REPORT.faults += [one for one in made if one.saw or one.connections]

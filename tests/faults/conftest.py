"""Faults on a real engine: every test here is marked `docker`, and says in a table at the end what the user saw."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner
from tests.docker.observing import free_port, row_of
from tests.faults.neighbour import Neighbour, warm_up
from tests.faults.report import Fault, Report
from tests.faults.supervisors import the_supervisor

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


@pytest.fixture
def neighbour(container: ContainerFactory, run: Runner, home: Path) -> Neighbour:
    """An innocent container that is attached and has been asked before."""
    good = container()
    server = good.start_server(port=free_port(), text="good")
    run("autoforward", "attach", good.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    warm_up(host_port)
    return Neighbour(home, host_port, the_supervisor(home))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    if call.when == "call":
        for one in getattr(item, "faults", []):
            if one.saw or one.connections:
                item.user_properties.append(("fault", one.to_json()))
    return (yield)

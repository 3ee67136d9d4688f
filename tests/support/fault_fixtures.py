"""Faults on a real engine: each test says in a table at the end of the run what the user saw."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.conftest import SETTING_VARIABLES, ContainerFactory, Runner, home_folder
from tests.support.containers import LABEL, Container, run_id
from tests.support.fault_report import Fault, Report
from tests.support.neighbour import Neighbour, Reference, p99_s, warm_up
from tests.support.observing import free_port, row_of
from tests.support.supervisors import the_supervisor


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


@pytest.fixture(scope="module")
def reference(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Reference]:
    """What neighbours are measured against: one for all tests of a file, for nothing happens to it."""
    with home_folder() as home:
        run = Runner(home, dict.fromkeys(SETTING_VARIABLES), forks=False)
        raw = engine.containers.run(images["full"], ["sleep", "infinity"], detach=True, labels={LABEL: run_id()})
        app = Container(engine, raw, "full")
        try:
            server = app.start_server(port=free_port(), text="reference")
            run("autoforward", "attach", app.name, check=0)
            host_port = row_of(run, server.port, status="active")["localPort"]
            warm_up(host_port)
            yield Reference(host_port, p99_s(host_port))
        finally:
            app.remove()


@pytest.fixture
def neighbour(container: ContainerFactory, run: Runner, home: Path, reference: Reference) -> Neighbour:
    """An innocent container that is attached and has been asked before."""
    good = container()
    server = good.start_server(port=free_port(), text="good")
    run("autoforward", "attach", good.name, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    warm_up(host_port)
    return Neighbour(home, host_port, the_supervisor(home), reference)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    if call.when == "call":
        for one in getattr(item, "faults", []):
            if one.saw or one.connections:
                item.user_properties.append(("fault", one.to_json()))
    return (yield)

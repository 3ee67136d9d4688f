"""The conformance suite over every way to an engine, one container and one supervisor for each way; then what is a way's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import pytest

from tests.conftest import Runner, home_folder, supervisor_of
from tests.support.conformance import (  # the tests too: they run here over every way
    Attached,
    Lane,
    test_fifty_connections_at_once,
    test_half_close_is_kept,
    test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason,
    test_server_that_speaks_and_closes_first_ends_the_relay,
    test_sixty_four_mebibytes_each_way,
)
from tests.support.containers import eventually
from tests.support.engines.ways import WAYS, Reached
from tests.support.observing import status_json

pytestmark = pytest.mark.docker

__all__ = [
    "test_fifty_connections_at_once",
    "test_half_close_is_kept",
    "test_host_and_port_with_nothing_behind_is_a_reset_with_its_reason",
    "test_server_that_speaks_and_closes_first_ends_the_relay",
    "test_sixty_four_mebibytes_each_way",
]

AGENT = Lane("agent", "full", "agent", "agent", 5.0)


@pytest.fixture(scope="module", params=WAYS)
def reached(
    request: pytest.FixtureRequest, engine: docker.DockerClient, images: Mapping[str, str]
) -> Iterator[Reached]:
    with WAYS[request.param](engine, images) as one:
        yield one


@pytest.fixture(scope="module")
def engine_home(reached: Reached) -> Iterator[Path]:
    """One for each way: the test that kills the supervisor leaves its sessions for the next one in that home."""
    assert reached
    with home_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def engine_run(reached: Reached, engine_home: Path) -> Runner:
    return Runner(engine_home, reached.env)


@pytest.fixture(scope="module")
def attached(reached: Reached, engine_run: Runner) -> Iterator[Attached]:
    with reached.containers() as container:
        yield Attached(AGENT, container, engine_run, reached.more_options)


def test_the_engine_and_its_origin_are_told(attached: Attached, reached: Reached, engine_run: Runner) -> None:
    attached.attach()
    status = status_json(engine_run)
    [session] = status["sessions"]
    assert session["engine"] == reached.host
    assert status["engines"] == [{"host": reached.host, "source": session["engine_source"]}]
    findings = json.loads(engine_run("autoforward", "doctor", "--json").stdout)
    [finding] = [one for one in findings if one["id"] == "engine"]
    assert finding["status"] == "ok"
    assert reached.host in finding["text"]
    assert session["engine_source"] in finding["text"]


def test_killed_supervisor_leaves_nothing_on_any_engine(attached: Attached, engine_home: Path) -> None:
    """Neither in the container nor here: an ssh that carries the engine, a docker command that carries a stream."""
    attached.attach()
    supervisor = supervisor_of(engine_home)
    assert supervisor is not None
    children = supervisor.children(recursive=True)
    supervisor.kill()

    def gone() -> bool:
        left = attached.container.processes(of_tests=False)
        assert not left, left
        assert not [child for child in children if child.is_running() and child.status() != "zombie"]
        return True

    eventually(gone, timeout_s=30)

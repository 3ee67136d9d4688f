"""Two engines in one supervisor: host ports are one space, and what befalls one engine is no business of the other's."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
import pytest

from autoforward.engine.pool import ENGINE_THREADS
from tests.conftest import ContainerFactory, Runner, missing
from tests.support.conformance import dial
from tests.support.containers import HELPER_DIR, eventually, fetch
from tests.support.observing import free_port, logged, rows, status_json, steps
from tests.support.second_engine import SecondEngine

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def second(engine: docker.DockerClient, images: Mapping[str, str]) -> Iterator[SecondEngine]:
    if (reason := SecondEngine.unavailable_reason()) is not None:
        missing(reason)
    one = SecondEngine(live_restore=True)
    try:
        one.start()
        one.load(images["full"])
        yield one
    finally:
        one.close()


def server(container_port: int, text: str) -> list[str]:
    return ["python3", f"{HELPER_DIR}/server.py", "http", "--port", str(container_port), "--text", text]


def test_engine_that_hangs_or_goes_away_leaves_no_trace_on_the_other(
    second: SecondEngine, images: Mapping[str, str], container: ContainerFactory, run: Runner, home: Path
) -> None:
    port = free_port()
    near = container("full", server(port, "near"))
    far = second.run(images["full"], server(port, "far"))
    # On a lane where every connection takes a thread that waits for the engine.
    run("autoforward", "attach", near.name, "--lane", "socat", check=0)
    run("autoforward", "attach", far.name, "--docker-host", second.host, "--lane", "socat", check=0)

    def host_ports() -> dict[str, int]:
        return {row["containerName"]: row["localPort"] for row in rows(run) if row["status"] == "active"}

    def both() -> dict[str, int]:
        found = host_ports()
        assert set(found) == {near.name, far.name}
        return found

    ports = eventually(both, timeout_s=30)
    assert ports[near.name] != ports[far.name]
    assert fetch(f"http://127.0.0.1:{ports[near.name]}/") == "near\n"
    assert fetch(f"http://127.0.0.1:{ports[far.name]}/") == "far\n"
    status = status_json(run)
    assert {one["host"] for one in status["engines"]} == {status["sessions"][0]["engine"], second.host}
    assert {one["engine_source"] for one in status["sessions"]} >= {"--docker-host"}

    # It hangs, more connections wait for it than there are threads for an engine, and the other one is used as ever.
    since = logged(home)[-1]["seq"]
    second.signal(signal.SIGSTOP)
    waiting = [dial(ports[far.name]) for _ in range(2 * ENGINE_THREADS)]
    try:
        another = container("full", server(port, "another"))
        run("autoforward", "attach", another.name, check=0)
        found = host_ports()
        assert fetch(f"http://127.0.0.1:{found[another.name]}/") == "another\n"
        assert fetch(f"http://127.0.0.1:{found[near.name]}/") == "near\n"
    finally:
        second.signal(signal.SIGCONT)
        for client in waiting:
            client.close()

    # It is gone, and comes back.
    second.kill()

    def states() -> dict[str, str]:
        return {row["container_name"]: row["state"] for row in status_json(run)["sessions"]}

    eventually(lambda: states().get(far.name) == "reconnecting", timeout_s=30)
    assert states()[near.name] == "watching"
    assert fetch(f"http://127.0.0.1:{ports[near.name]}/") == "near\n"
    second.start()
    eventually(lambda: states().get(far.name) == "watching", timeout_s=60)
    eventually(lambda: host_ports().get(far.name) == ports[far.name], what="on the same host port")
    assert fetch(f"http://127.0.0.1:{ports[far.name]}/") == "far\n"
    of_near = [event for event in logged(home, since=since) if event["containerName"] == near.name]
    assert steps(of_near) == [], "nothing that happened there is told of this one"

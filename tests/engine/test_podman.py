"""What Podman does otherwise than Docker, rootful and rootless: owners, events, addresses, shell lanes, compose."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from autoforward.core.model import EngineEndpoint
from autoforward.engine.client import ContainerEvent, Engine
from tests.conftest import Runner
from tests.dataplane.test_direct_path import PIECE, SIZE, echo_of, listening_on_its_address
from tests.images.recipes import HELPER_DIR
from tests.support.conformance import dial
from tests.support.containers import Container, assert_page, eventually, fetch
from tests.support.engines.podman import PodmanService, podman_with
from tests.support.observing import (
    IMPATIENT,
    ask,
    begin_supervisor,
    free_port,
    row_of,
    status_json,
    wait_event,
    wait_steps,
)

pytestmark = pytest.mark.docker

SERVER = f"{HELPER_DIR}/server.py"
SHELL_LANES = ["socat", "nc", "devtcp"]
"""The agent's has tests/engine/test_engines.py for itself."""


@pytest.fixture(scope="module", params=[False, True], ids=["rootful", "rootless"])
def podman(request: pytest.FixtureRequest, images: Mapping[str, str]) -> Iterator[PodmanService]:
    with podman_with(images["full"], rootless=request.param) as service:
        yield service


@pytest.fixture
def client(podman: PodmanService, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    """For the test's own use; every command goes to this Podman, too."""
    monkeypatch.setenv("DOCKER_HOST", podman.host)
    one = docker.DockerClient(base_url=podman.host, timeout=60)
    yield one
    one.close()


@pytest.fixture
def box(client: docker.DockerClient, images: Mapping[str, str]) -> Iterator[Callable[..., Container]]:
    """A factory of containers that run this command; removed after the test."""
    made: list[Container] = []

    def make(*command: str, **options: Any) -> Container:
        name = f"af-{uuid.uuid4().hex[:10]}"
        raw = client.containers.create(images["full"], command or ("sleep", "infinity"), name=name, **options)
        made.append(Container(client, raw, "full"))
        raw.start()
        return made[-1]

    yield make
    for one in made:
        one.remove()


def session_of(run: Runner) -> dict[str, Any]:
    [session] = status_json(run)["sessions"]
    return dict(session)


def test_agent_runs_as_an_ordinary_user(box: Callable[..., Container], run: Runner) -> None:
    """Podman says of every file that it is the container's user's: with `user: dev`, as dev containers have it, the agent
    was taken for somebody else's, and every connection started a process."""
    port = free_port()
    app = box("python3", SERVER, "http", "--port", str(port), user="dev")
    run("autoforward", "attach", app.name, check=0)
    assert session_of(run)["lane"]["name"] == "agent"
    assert fetch(row_of(run, port, status="active")["url"]) == "hello\n"
    found = app.shell("ls -d /tmp/.autoforward-*/.autoforward/agent-*").split()
    assert len(found) == 1
    code, output = app.exec(["stat", "-c", "%u %a", found[0], str(Path(found[0]).parent)], user="root")
    assert (code, output.split("\n")[:2]) == (0, ["0 755", "0 755"])
    finding = {one["id"]: one for one in json.loads(run("autoforward", "doctor", app.name, "--json", check=0).stdout)}[
        "engine-version"
    ]
    assert finding["status"] == "ok"
    assert "Podman Engine" in finding["text"]


def test_agent_of_root_is_not_put_where_others_could_have_been_first(
    box: Callable[..., Container], run: Runner
) -> None:
    """Of his folder Podman says that it is root's, too: what is in it would be taken for ours, and he could exchange it."""
    app = box(user="root")
    code, output = app.exec(["mkdir", "/tmp/.autoforward"], user="dev")
    assert code == 0, output
    run("autoforward", "attach", app.name, check=0)
    assert session_of(run)["lane"]["name"] == "agent"
    assert app.shell("ls -A /tmp/.autoforward") == ""
    assert app.shell("ls -d /tmp/.autoforward-*/.autoforward/agent-*").count("\n") == 1


def test_life_of_a_container_is_told(box: Callable[..., Container], podman: PodmanService) -> None:
    """Asked for `die`, Podman tells nothing: it filters by its own word for it, and then says Docker's."""
    engine = Engine(EngineEndpoint(podman.host, "a test"))
    opened, heard, streams = threading.Event(), list[ContainerEvent](), list[Any]()

    def listen() -> None:
        def on_open(stream: Any) -> None:
            streams.append(stream)
            opened.set()

        for event in engine.events(on_open):
            heard.append(event)
            if event.action == "remove":
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    assert opened.wait(20)
    app = box(labels={"color": "blue"})
    app.stop()
    app.remove()
    listener.join(30)
    streams[0].close()
    engine.close()
    mine = [event for event in heard if event.container_id == app.id]
    assert [event.action for event in mine] == ["create", "start", "die", "remove"]
    assert {(event.name, event.labels["color"]) for event in mine} == {(app.name, "blue")}


@pytest.mark.parametrize("lane", ["agent", "socat"])
def test_connections_survive_a_pause(box: Callable[..., Container], run: Runner, home: Path, lane: str) -> None:
    """Also one that is longer than the time after which an agent or a watcher that says nothing is given up."""
    begin_supervisor(home, IMPATIENT)
    port = free_port()
    app = box("python3", SERVER, "echo", "--port", str(port))
    run("autoforward", "attach", app.name, "--lane", lane, check=0)
    with dial(row_of(run, port, status="active")["localPort"]) as client:
        assert ask(client, b"before\n", ends=b"\n") == b"before\n"
        try:
            app.raw.pause()
        except docker.errors.APIError as error:
            if "can not pause" not in str(error):
                raise
            pytest.skip(f"this engine pauses nothing here: {error.explanation}")
        try:
            wait_event(home, "reconnecting", port)
            assert "paused" in row_of(run, port)["reason"]
            time.sleep(4)  # beyond all limits of this supervisor
        finally:
            app.raw.unpause()
        assert ask(client, b"after\n", ends=b"\n") == b"after\n"
    row_of(run, port, status="active")
    wait_steps(home, port, ["forwarded", "reconnecting", "reconnected"])


def test_shell_lanes_serve_and_end(box: Callable[..., Container], run: Runner) -> None:
    port = free_port()
    app = box("python3", SERVER, "http", "--port", str(port))
    for lane in SHELL_LANES:
        run("autoforward", "attach", app.name, "--lane", lane, check=0)
        assert session_of(run)["lane"]["name"] == lane
        url = row_of(run, port, status="active")["url"]
        assert [fetch(url) for _ in range(2)] == ["hello\n"] * 2
    total = 2 * len(SHELL_LANES)

    def idle() -> bool:
        return bool(row_of(run, port, status="active")["connections"] == {"active": 0, "total": total, "refused": 0})

    eventually(idle, timeout_s=20)
    run("autoforward", "detach", app.name, check=0)
    eventually(lambda: len(app.processes()) == 1, timeout_s=20, what="nothing of ours is left")


def test_same_port_after_a_restart(box: Callable[..., Container], run: Runner) -> None:
    port = free_port()
    app = box("python3", SERVER, "http", "--port", str(port), stop_signal="SIGKILL")
    run("autoforward", "attach", app.name, check=0)
    before = row_of(run, port, status="active")
    app.restart()
    after = row_of(run, port, status="active")
    assert (after["id"], after["localPort"]) == (before["id"], before["localPort"])
    # The row is active again as soon as the container is: its server may not be up yet.
    assert_page(after["url"], "hello\n", timeout_s=20)


@pytest.mark.timeout(180)
def test_bulk_goes_directly_where_the_address_can_be_reached(
    box: Callable[..., Container], podman: PodmanService, client: docker.DockerClient, run: Runner
) -> None:
    """Root's containers can be reached from here. An ordinary user's are on a network that is his alone, with an address
    that leads nowhere, or to somebody else: their bulk stays on the exec stream, and nobody hears of it."""
    options: dict[str, Any] = {}
    if podman.rootless:
        network = client.networks.create(f"af-{uuid.uuid4().hex[:10]}")
        options["network"] = network.name
    port = free_port()
    app = box("python3", SERVER, "echo", "--port", str(port), **options)
    assert app.address()
    done = run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    assert "direct" not in done.stderr
    host_port = row_of(run, port, status="active")["localPort"]
    assert echo_of(host_port) == hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
    if podman.rootless:
        assert row_of(run, port, status="active")["reason"] is None
    else:
        assert listening_on_its_address(app)


@pytest.mark.timeout(120)
def test_direct_path_is_off_while_another_container_is_there(
    box: Callable[..., Container], podman: PodmanService, client: docker.DockerClient, run: Runner
) -> None:
    """Podman says of a network who is on it, in its list nothing of whose network is used, and `connect` not at a start."""
    options: dict[str, Any] = {}
    if podman.rootless:
        options["network"] = client.networks.create(f"af-{uuid.uuid4().hex[:10]}").name
    app = box(**options)
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)

    def direct() -> Any:
        return session_of(run)["direct"]

    eventually(lambda: direct() == {"on": True, "reason": None}, what="direct path")
    for more in (options, {"network_mode": f"container:{app.id}"}):
        other = box(**more)
        eventually(lambda name=other.name: str(direct()["reason"]).startswith(name), what="its end")
        other.remove()
        eventually(lambda: direct()["on"], what="direct path")
    box(cap_drop=["ALL"], **options)
    eventually(lambda: direct()["on"], what="direct path")


@pytest.mark.compose
def test_compose_project(
    client: docker.DockerClient,
    podman: PodmanService,
    images: Mapping[str, str],
    run: Runner,
    tmp_path: Path,
    compose_command: str,
) -> None:
    folder = tmp_path / f"af-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    port = free_port()

    def service(*arguments: str) -> dict[str, Any]:
        command = ["python3", SERVER, *arguments]
        return {"image": images["full"], "command": command, "init": True, "pull_policy": "never"}

    text = {
        "services": {
            "app": service("http", "--bind", "127.0.0.1", "--port", str(port), "--text", "hello from app"),
            "db": service("http", "--bind", "0.0.0.0", "--port", "5432", "--text", "hello from db"),
        },
        # Of one that leads outside, root's would leave rules in this machine's firewall.
        "networks": {"default": {"internal": not podman.rootless}},
    }
    (folder / "compose.yaml").write_text(json.dumps(text))  # JSON is YAML
    subprocess.run([*compose_command.split(), "up", "-d"], cwd=folder, check=True, capture_output=True, timeout=60)
    try:
        run("autoforward", "attach", f"{folder.name}/app", "db:5432", check=0)
        assert fetch(row_of(run, port, status="active")["url"]) == "hello from app\n"
        row = row_of(run, 5432, status="active")
        assert (row["service"], row["containerHost"]) == ("app", "db")
        if podman.rootless:  # Docker's own rules may keep the containers of another engine of root's from each other
            assert fetch(f"http://127.0.0.1:{row['localPort']}/") == "hello from db\n"
    finally:
        down = [*compose_command.split(), "down", "-v", "--timeout", "1"]
        subprocess.run(down, cwd=folder, check=True, capture_output=True, timeout=60)

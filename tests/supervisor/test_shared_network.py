"""The direct path while containers join its network and leave: off with a foreign one that may forge, by what `status` says;
connections work all the while. And what one that forges gets to see."""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.conftest import ContainerFactory, Mapping, Runner
from tests.dataplane.test_direct_path import listening_on_its_address
from tests.support.conformance import dial, direct_connections
from tests.support.containers import LABEL, Container, eventually, run_id
from tests.support.observing import free_port, row_of, status_json

pytestmark = pytest.mark.docker

Network = Callable[[], str]


def direct_of(run: Runner, name: str) -> tuple[bool, str | None]:
    sessions = status_json(run)["sessions"]
    [direct] = [session["direct"] for session in sessions if session["container_name"] == name]
    return direct["on"], direct["reason"]


def is_on(run: Runner, app: Container) -> None:
    eventually(lambda: direct_of(run, app.name) == (True, None), what="direct path")


def is_off(run: Runner, app: Container, because_of: Container) -> None:
    def named() -> bool:
        on, reason = direct_of(run, app.name)
        return not on and reason is not None and reason.startswith(because_of.name)

    eventually(named, what=f"direct path that is off because of {because_of.name}")


def attached(run: Runner, app: Container) -> int:
    server = app.start_server("echo", port=free_port())
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    return int(row_of(run, server.port, status="active")["localPort"])


def echo(host_port: int, words: bytes = b"hello") -> None:
    with dial(host_port) as client:
        client.sendall(words)
        got = b""
        while len(got) < len(words):
            piece = client.recv(65536)
            assert piece, "the connection was cut"
            got += piece
        assert got == words


@contextmanager
def connections_all_the_while(host_port: int) -> Iterator[None]:
    """A new connection after the other, and one that stays open; none may fail."""
    over, faults, count = threading.Event(), list[Exception](), 0

    def work() -> None:
        nonlocal count
        try:
            while not over.is_set():
                echo(host_port)
                count += 1
        except (OSError, AssertionError) as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with dial(host_port) as held:
            yield
            held.sendall(b"still here")
            assert held.recv(100) == b"still here"
    finally:
        over.set()
        thread.join(30)
    assert not faults, faults
    assert count > 10


@pytest.mark.timeout(180)
def test_foreign_container_joins_and_leaves(
    container: ContainerFactory, network: Network, run: Runner, engine: docker.DockerClient
) -> None:
    name = network()
    app = container(network=name)
    host_port = attached(run, app)
    is_on(run, app)
    echo(host_port)
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    with connections_all_the_while(host_port):
        evil = container(network=name)
        is_off(run, app, evil)
        eventually(lambda: not listening_on_its_address(app), what="the listener's end")
        evil.remove()
        is_on(run, app)
        harmless = container(network=name, cap_drop=["NET_RAW"])
        is_on(run, app)
        rider = container(network=f"container:{harmless.id}")
        is_off(run, app, rider)
        rider.stop()
        is_on(run, app)
        rider.start()
        is_off(run, app, rider)
        rider.remove()
        is_on(run, app)
        late = container()
        engine.networks.get(name).connect(late.id)
        is_off(run, app, late)
        engine.networks.get(name).disconnect(late.id)
        is_on(run, app)
        inside = container(network=f"container:{app.id}")
        is_off(run, app, inside)
        inside.remove()
        is_on(run, app)
    echo(host_port)
    eventually(lambda: direct_connections(app) >= 1, what="a trunk again")


@pytest.mark.timeout(120)
def test_trunk_ends_when_a_foreigner_has_come(container: ContainerFactory, network: Network, run: Runner) -> None:
    """What is open there stays until it ends, nothing new goes there; then it is gone."""
    name = network()
    app = container(network=name)
    host_port = attached(run, app)
    is_on(run, app)
    echo(host_port)
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    with dial(host_port) as held:
        held.sendall(b"x")
        assert held.recv(1) == b"x"
        evil = container(network=name)
        is_off(run, app, evil)
        echo(host_port)
        assert direct_connections(app) == 1
        held.sendall(b"y")
        assert held.recv(1) == b"y"
    eventually(lambda: direct_connections(app) == 0, timeout_s=30, what="the trunk's end")
    echo(host_port)
    assert direct_connections(app) == 0


def test_direct_set_by_the_user_stays_on(
    container: ContainerFactory, network: Network, run: Runner, home: Path
) -> None:
    name = network()
    app, evil = container(network=name), container(network=name)
    host_port = attached(run, app)
    is_off(run, app, evil)
    said = run("autoforward", "status", check=0).stdout
    assert f"{app.name}: direct: off: {evil.name} shares the network {name} and may forge traffic (NET_RAW)" in said
    finding = next(
        one for one in json.loads(run("autoforward", "doctor", app.name, "--json").stdout) if one["id"] == "direct"
    )
    assert finding["text"].startswith(f"direct: off: {evil.name}")
    run("autoforward", "detach", app.name, check=0)
    alone = next(
        one for one in json.loads(run("autoforward", "doctor", app.name, "--json").stdout) if one["id"] == "direct"
    )
    assert alone == finding, "without a session it is looked at there and then"
    config = home / "user/autoforward/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("direct = true\n")
    run("autoforward", "attach", app.name, "--lane", "agent", check=0)
    on, reason = direct_of(run, app.name)
    assert on and reason == "the setting direct is true: who shares its networks does not matter"
    host_port = row_of(run, app.servers[0].port, status="active")["localPort"]
    echo(host_port)
    eventually(lambda: direct_connections(app) == 1, what="the trunk")


@pytest.mark.compose
@pytest.mark.timeout(120)
def test_compose_project_is_among_itself(
    images: Mapping[str, str],
    container: ContainerFactory,
    engine: docker.DockerClient,
    run: Runner,
    tmp_path: Path,
    compose_command: str,
) -> None:
    """Foreign is who is not of it, also one whose image claims so; an instance more of a service is none."""
    folder = tmp_path / f"af-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    service: dict[str, Any] = {
        "image": images["full"],
        "command": ["sleep", "infinity"],
        "init": True,
        "pull_policy": "never",
        "labels": {LABEL: run_id()},
    }
    network = {"default": {"labels": {LABEL: run_id()}}}
    (folder / "compose.yaml").write_text(json.dumps({"services": {"app": service, "db": service}, "networks": network}))
    compose = [*compose_command.split(), "--project-directory", str(folder)]
    subprocess.run([*compose, "up", "-d"], check=True, capture_output=True, timeout=60)
    try:
        run("autoforward", "attach", f"{folder.name}/app", "--lane", "agent", check=0)
        app = f"{folder.name}-app-1"
        eventually(lambda: direct_of(run, app) == (True, None), what="direct path")
        other = container(network=f"{folder.name}_default")
        expected = f"{other.name}, which is not of the compose project {folder.name}, shares the network"
        eventually(lambda: str(direct_of(run, app)[1]).startswith(expected), what="its end")
        claim = {"com.docker.compose.project": folder.name, "com.docker.compose.service": "db"}
        image = other.raw.commit(changes=[f"LABEL {key}={value}" for key, value in claim.items()])
        other.remove()
        try:
            liar = engine.containers.run(
                image.id, network=f"{folder.name}_default", detach=True, labels={LABEL: run_id()}
            )
            eventually(lambda: str(direct_of(run, app)[1]).startswith(liar.name), what="its end")
            liar.remove(force=True)
        finally:
            engine.images.remove(image.id, force=True)
        eventually(lambda: direct_of(run, app) == (True, None), what="direct path")
        subprocess.run([*compose, "up", "-d", "--scale", "db=2"], check=True, capture_output=True, timeout=60)
        eventually(lambda: direct_of(run, app) == (True, None), what="direct path")
    finally:
        subprocess.run([*compose, "down", "--timeout", "0"], check=True, capture_output=True, timeout=60)


FORGER = r"""
import socket, sys, time
target, gateway, marker = sys.argv[1], sys.argv[2], sys.argv[3].encode()
def mac_of(address):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (address, 9))
    for _ in range(200):
        for line in open("/proc/net/arp"):
            if line.split()[0] == address and line.split()[3] != "00:00:00:00:00:00":
                return bytes.fromhex(line.split()[3].replace(":", ""))
        time.sleep(0.02)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
raw.bind(("eth0", 0))
mine, host = raw.getsockname()[4], mac_of(gateway)
told = mine + socket.inet_aton(target) + host + socket.inet_aton(gateway)
reply = host + mine + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x02" + told
raw.settimeout(0.05)
print("ready", flush=True)
due = 0
while True:
    if time.monotonic() > due:
        raw.send(reply)
        due = time.monotonic() + 0.1
    try:
        frame = raw.recv(65536)
    except TimeoutError:
        continue
    if marker in frame and frame[12:14] == b"\x08\x00":
        print("caught", flush=True)
        break
"""
"""Tells the host that the target's address is its own, and looks for the marker in what it then gets."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("setting", [None, "true"], ids=["automatic", "always"])
def test_container_that_forges_addresses_reads_nothing(
    container: ContainerFactory, network: Network, run: Runner, engine: docker.DockerClient, setting: str | None
) -> None:
    """With `direct = true` the same container reads what a client says: it is able to."""
    name, marker = network(), uuid.uuid4().hex
    app = container(network=name)
    server = app.start_server("echo", port=free_port())
    env = {"AUTOFORWARD_DIRECT": setting} if setting else {}
    run("autoforward", "attach", app.name, "--lane", "agent", env=env, check=0)
    host_port = row_of(run, server.port, status="active")["localPort"]
    echo(host_port)
    eventually(lambda: direct_connections(app) == 1, what="the trunk")
    gateway = engine.networks.get(name).attrs["IPAM"]["Config"][0]["Gateway"]
    command = ["python3", "-c", FORGER, app.address(name), gateway, marker]
    evil = container(command=command, network=name)
    eventually(lambda: b"ready" in evil.raw.logs(), what="the forger")
    if setting is None:
        is_off(run, app, evil)

    def is_read() -> bool:
        with dial(host_port) as client:
            client.settimeout(2)
            try:
                client.sendall(marker.encode())
                client.recv(100)
            except OSError:
                pass
        return b"caught" in evil.raw.logs()

    if setting is not None:
        eventually(is_read, timeout_s=30, what="the marker in the forger's hands")
        return
    for _ in range(30):
        echo(host_port, marker.encode())
    assert b"caught" not in evil.raw.logs()

"""`autoforward doctor` on a real engine: what is well, what stands in the way, and that it leaves everything as it was."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ContainerFactory, Runner, supervisor_of
from tests.support.containers import Container, eventually
from tests.support.observing import dev_container_labels, free_port, new_folder, row_of

pytestmark = pytest.mark.docker

NOWHERE = "unix:///nonexistent/engine.sock"


def doctor(run: Runner, *arguments: str, check: int, env: dict[str, str | None] | None = None) -> dict[str, Any]:
    """The findings by id."""
    done = run("autoforward", "doctor", "--json", *arguments, check=check, env=env)
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    found = {finding["id"]: finding for finding in findings}
    assert len(found) == len(findings)
    assert ("fail" in {finding["status"] for finding in findings}) == (check != 0)
    return found


def said(finding: dict[str, Any]) -> tuple[str, str]:
    return finding["status"], f"{finding['text']} {finding['hint'] or ''}"


def snapshot(one: Container) -> tuple[list[str], str]:
    """What runs in a container, and the files of its file system that are not the image's."""
    return [process.command for process in one.processes()], json.dumps(one.raw.diff(), sort_keys=True)


def test_doctor_finds_all_well_and_changes_nothing(container: ContainerFactory, run: Runner, home: Path) -> None:
    app = container("full")
    before = snapshot(app), sorted(home.iterdir()), home.stat().st_mode
    found = doctor(run, app.name, check=0)
    assert (snapshot(app), sorted(home.iterdir()), home.stat().st_mode) == before
    assert supervisor_of(home) is None
    expected = {
        "engine",
        "engine-version",
        "clock",
        "state-folder",
        "disk",
        "supervisor",
        "loopback",
        "target",
        "lanes",
    }
    assert {name for name in expected if found[name]["status"] != "ok"} == set()
    assert "agent lane would" in found["lanes"]["text"]
    assert "can be put into /tmp" in found["lane-agent"]["text"]
    assert "socat 1." in found["lane-socat"]["text"]
    assert "OpenBSD nc" in found["lane-nc"]["text"]
    assert found["ports"]["status"] == "ok"


def test_doctor_prints_findings_and_ways_out(container: ContainerFactory, run: Runner) -> None:
    app = container("full")
    done = run("autoforward", "doctor", app.name, check=0, env={"PYTHONIOENCODING": "utf-8"})
    assert "✓ target           container " in done.stdout
    assert "\x1b" not in done.stdout
    assert "No problem found" in done.stderr
    plain = run("autoforward", "doctor", app.name, check=0, env={"PYTHONIOENCODING": "ascii"})
    assert "+ target           container " in plain.stdout
    assert plain.stdout.isascii()


def test_the_engine_is_down(run: Runner, home: Path) -> None:
    found = doctor(run, "web", check=1, env={"DOCKER_HOST": NOWHERE})
    status, words = said(found["engine"])
    assert status == "fail"
    assert all(word in words for word in (NOWHERE, "DOCKER_HOST", "not there", "start it"))
    assert found["target"]["status"] == "warn"
    assert found["supervisor"]["status"] == "ok", "the rest is looked at all the same"
    assert not {"engine-version", "clock", "lanes"} & set(found)


def test_a_context_that_is_none(run: Runner) -> None:
    status, words = said(doctor(run, "--context", "no-such-context", check=1)["engine"])
    assert status == "fail"
    assert "no-such-context" in words


def test_a_target_that_is_none(run: Runner) -> None:
    found = doctor(run, "no-such-container", check=4)
    assert found["target"]["status"] == "fail"
    assert "no-such-container" in found["target"]["text"]
    assert found["engine"]["status"] == "ok"


def test_a_container_without_any_lane(container: ContainerFactory, run: Runner) -> None:
    """Nothing of its own, and a file system on which the agent cannot be put."""
    app = container("nolane", read_only=True)
    found = doctor(run, app.name, check=1)
    status, words = said(found["lanes"])
    assert status == "fail"
    assert "install socat" in words
    assert "read-only" in found["lane-agent"]["text"]
    assert [found[f"lane-{lane}"]["status"] for lane in ("agent", "socat", "nc", "devtcp")] == ["warn"] * 4


def test_another_lane_where_the_agent_has_no_place(container: ContainerFactory, run: Runner) -> None:
    """Into a tmpfs an engine puts nothing."""
    app = container("openbsd", read_only=True, tmpfs={"/tmp": ""})
    found = doctor(run, app.name, check=0)
    assert "nc lane would" in found["lanes"]["text"]
    assert found["lane-agent"]["status"] == "warn"


@pytest.fixture
def held() -> Iterator[int]:
    """A host port that this process holds."""
    number = free_port()
    with socket.create_server(("127.0.0.1", number)):
        yield number


def test_a_port_that_somebody_holds(container: ContainerFactory, run: Runner, held: int) -> None:
    free = free_port()
    labels = dev_container_labels(new_folder(), forwardPorts=[held, free])
    app = container(labels=labels)
    found = doctor(run, app.name, check=0)
    status, words = said(found[f"port-{held}"])
    assert status == "warn"
    assert f"(pid {os.getpid()})" in words
    assert found[f"port-{free}"]["status"] == "ok"
    with socket.create_server(("127.0.0.1", free)):  # it was given back
        pass


def test_a_port_that_must_be_the_one_that_somebody_holds(container: ContainerFactory, run: Runner, held: int) -> None:
    attributes = {str(held): {"requireLocalPort": True}}
    labels = dev_container_labels(new_folder(), forwardPorts=[held], portsAttributes=attributes)
    found = doctor(run, container(labels=labels).name, check=1)
    assert found[f"port-{held}"]["status"] == "fail"
    assert [name for name, finding in found.items() if finding["status"] == "fail"] == [f"port-{held}"]


def test_doctor_of_a_session_says_what_is_in_force(container: ContainerFactory, run: Runner, home: Path) -> None:
    port = free_port()
    labels = dev_container_labels(new_folder(), forwardPorts=[port])
    app, other = container(labels=labels), container(labels=labels)
    run("autoforward", "attach", app.name, "--lane", "socat", check=0)
    row_of(run, port)
    process = supervisor_of(home)
    assert process is not None
    found = doctor(run, app.name, check=0)
    assert "socat lane carries its connections now" in found["lanes"]["text"]
    assert f"pid {process.pid}, 1 session(s)" in found["supervisor"]["text"]
    assert "held for it" in found[f"port-{port}"]["text"]
    assert f"autoforward, for {app.name}" in doctor(run, other.name, check=0)[f"port-{port}"]["text"]
    process.kill()
    eventually(lambda: supervisor_of(home) is None, what="the end of the supervisor")
    status, words = said(doctor(run, check=0)["supervisor"])
    assert status == "warn"
    assert "1 session(s) wait" in words
    assert supervisor_of(home) is None


def test_a_state_folder_that_others_can_write_to(run: Runner, home: Path) -> None:
    home.chmod(0o777)
    status, words = said(doctor(run, check=1)["state-folder"])
    home.chmod(0o700)
    assert status == "fail"
    assert f"chmod 700 {home}" in words

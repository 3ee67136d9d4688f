"""`autoforward doctor`: each check's outcomes, from what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoforward.config.environment import SessionEnvironment
from autoforward.core.model import ContainerInfo, EngineEndpoint, PublishedPort
from autoforward.doctor import container_checks, host_checks
from autoforward.doctor.container_checks import AgentFacts, LanesFacts, PortFacts
from autoforward.doctor.findings import Finding
from autoforward.doctor.host_checks import (
    CliFacts,
    EngineAbout,
    EngineFacts,
    FolderFacts,
    LoopbackFacts,
    SupervisorFacts,
)
from autoforward.lanes.probe import Probe
from autoforward.lanes.relay_tools import Netcat

pytestmark = pytest.mark.unit

ENDPOINT = EngineEndpoint("unix:///run/x.sock", "DOCKER_HOST")
ABOUT = EngineAbout("Docker Engine", "28.0", "1.48", "linux", "amd64", 0.1)
FOLDER = FolderFacts("/state", "folder", 1000, 1000, 0o700, True, 10**10, 10**6)
PORT = PortFacts("3000", 3000, "tcp", 3000, False, "free")


def judged(finding: Finding, status: str, *words: str) -> None:
    """The status, what text and hint say, and that whoever is stopped has a way out."""
    assert finding.status == status, finding
    said = f"{finding.text} {finding.hint or ''}"
    assert all(word in said for word in words), said
    assert finding.status != "fail" or finding.hint


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (EngineFacts(ENDPOINT, "usable", ABOUT), "ok", ["unix:///run/x.sock", "DOCKER_HOST"]),
        (EngineFacts(ENDPOINT, "missing"), "fail", ["unix:///run/x.sock", "DOCKER_HOST", "not there", "start"]),
        (EngineFacts(ENDPOINT, "denied"), "fail", ["may not", "engine-access"]),
        (EngineFacts(ENDPOINT, "refused"), "fail", ["nothing listens on its socket"]),
        (EngineFacts(ENDPOINT, problem="connection timed out"), "fail", ["connection timed out"]),
        (
            EngineFacts(None, problem="no docker context is called 'x'", hint="`docker context ls`"),
            "fail",
            ["'x'", "ls"],
        ),
    ],
)
def test_engine(facts: EngineFacts, status: str, words: list[str]) -> None:
    judged(host_checks.check_engine(facts), status, *words)


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (EngineFacts(ENDPOINT, "usable", ABOUT), "ok"),
        (EngineFacts(ENDPOINT, "no socket", ABOUT), "ok"),
        (EngineFacts(ENDPOINT, "missing"), "warn"),
        (EngineFacts(ENDPOINT, "no socket"), "warn"),
        (EngineFacts(ENDPOINT, "denied"), "fail"),
    ],
)
def test_engine_access(facts: EngineFacts, status: str) -> None:
    judged(host_checks.check_engine_access(facts), status)


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({}, "ok", "28.0"),
        ({"api_version": "1.25"}, "ok", "1.25"),
        ({"api_version": "1.24"}, "fail", "too old"),
        ({"api_version": "unknown"}, "ok", "unknown"),
        ({"os": "windows"}, "fail", "Linux containers"),
        ({"name": "Podman Engine", "version": "4.3.1"}, "ok", "Podman Engine 4.3.1"),
        ({"name": "Another Engine"}, "warn", "not tested"),
    ],
)
def test_engine_version(changes: dict[str, str], status: str, word: str) -> None:
    judged(host_checks.check_engine_version(replace(ABOUT, **changes)), status, word)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offset_s", "status", "word"),
    [
        (0.0, "ok", ""),
        (-2.0, "ok", ""),
        (2.1, "warn", "ahead of"),
        (-90.0, "warn", "90 s behind"),
        (None, "warn", "does not report its time"),
    ],
)
def test_clock(offset_s: float | None, status: str, word: str) -> None:
    judged(host_checks.check_clock(replace(ABOUT, clock_offset_s=offset_s)), status, word)


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({}, "ok", "alone"),
        ({"kind": None}, "ok", "will be made"),
        ({"mode": 0o755}, "warn", "0755"),
        ({"mode": 0o770}, "fail", "chmod 700 /state"),
        ({"kind": None, "writable": False}, "fail", "AUTOFORWARD_HOME"),
        ({"writable": False}, "fail", "cannot be written"),
        ({"owner_uid": 0}, "fail", "user id 0"),
        ({"kind": "link"}, "fail", "symbolic link"),
        ({"kind": "other"}, "fail", "not a folder"),
    ],
)
def test_state_folder(changes: dict[str, Any], status: str, word: str) -> None:
    judged(host_checks.check_state_folder(replace(FOLDER, **changes)), status, word)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"free_bytes": 50_000_000}, "ok"),
        ({"free_bytes": 49_999_999}, "warn"),
        ({"free_bytes": 999_999}, "fail"),
        ({"free_files": 0}, "fail"),
        ({"free_files": None}, "ok"),
    ],
)
def test_disk(changes: dict[str, Any], status: str) -> None:
    judged(host_checks.check_disk(replace(FOLDER, **changes)), status)


@pytest.mark.parametrize(
    ("facts", "status", "word"),
    [
        (SupervisorFacts("running", "1.0", 12), "ok", "pid 12"),
        (SupervisorFacts("none"), "ok", "starts one"),
        (SupervisorFacts("none", stored=2), "warn", "2 session(s)"),
        (SupervisorFacts("running", "0.9", 12), "warn", "autoforward restart"),
        (SupervisorFacts("silent", problem="timed out"), "fail", "timed out"),
    ],
)
def test_supervisor(facts: SupervisorFacts, status: str, word: str) -> None:
    judged(host_checks.check_supervisor(facts, "1.0"), status, word)


@pytest.mark.parametrize(
    ("facts", "status", "word"),
    [
        (CliFacts("/bin/d", "PATH", "0.70"), "ok", "version 0.70"),
        (CliFacts("/bin/d", "PATH", problem="`--version` ended with status 1"), "warn", "status 1"),
        (CliFacts(None, problem="no devcontainer CLI", hint="npm install"), "warn", "npm install"),
        (CliFacts(None, problem="x is not a program", named=True), "fail", "x is not a program"),
    ],
)
def test_devcontainer_cli(facts: CliFacts, status: str, word: str) -> None:
    judged(host_checks.check_devcontainer_cli(facts), status, word)


@pytest.mark.parametrize(
    ("built", "architecture", "status", "word"),
    [
        ("amd64 arm64", "amd64", "ok", "amd64 and arm64"),
        ("amd64", "amd64", "ok", "not for arm64"),
        ("amd64", None, "ok", "amd64"),
        ("amd64", "arm64", "warn", "compiler"),
        ("", "amd64", "warn", "shell lanes"),
    ],
)
def test_agent_of_the_installation(built: str, architecture: str | None, status: str, word: str) -> None:
    there = {name: name in built.split() for name in ("amd64", "arm64")}
    judged(host_checks.check_agent_package(there, architecture), status, word)


@pytest.mark.parametrize(
    ("facts", "status", "word"),
    [
        (LoopbackFacts(None, None), "ok", "::1"),
        (LoopbackFacts(None, "cannot assign requested address"), "warn", "127.0.0.1 alone"),
        (LoopbackFacts("cannot assign requested address", None), "fail", "lo up"),
    ],
)
def test_loopback(facts: LoopbackFacts, status: str, word: str) -> None:
    judged(host_checks.check_loopback(facts), status, word)


@pytest.mark.parametrize(
    ("lowest", "status", "word"), [(1, "ok", "every"), (1024, "ok", "1024"), (None, "warn", "does not say which ports")]
)
def test_privileged_ports(lowest: int | None, status: str, word: str) -> None:
    judged(host_checks.check_privileged_ports(lowest), status, word)


@pytest.mark.parametrize(
    ("limit", "status"), [(None, "ok"), (4096, "ok"), (4095, "warn"), (256, "warn"), (255, "fail")]
)
def test_descriptors(limit: int | None, status: str) -> None:
    judged(host_checks.check_descriptors(limit), status)


@pytest.mark.parametrize(
    ("variables", "status", "word"),
    [
        ({"DISPLAY": ":0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/bus"}, "ok", "notifications are shown"),
        ({"DISPLAY": ":0"}, "warn", "no session bus"),
        ({}, "ok", "no browser"),
        ({"AUTOFORWARD_BROWSER": "/bin/b"}, "ok", "/bin/b"),
        ({"CI": "true", "DISPLAY": ":0"}, "ok", "CI is set"),
    ],
)
def test_desktop(variables: dict[str, str], status: str, word: str) -> None:
    judged(host_checks.check_desktop(SessionEnvironment.of(variables), "linux"), status, word)


# -- the container -------------------------------------------------------------------------------


def info(**changes: Any) -> ContainerInfo:
    return replace(ContainerInfo("0123456789abcdef", "web", "running", {}), **changes)


def test_target() -> None:
    judged(container_checks.check_target(info()), "ok", "web", "0123456789ab")
    judged(
        container_checks.check_target(None, "no container is called x", "did you mean y?"),
        "fail",
        "x",
        "did you mean y?",
    )
    judged(container_checks.check_target(None, "container x is paused"), "fail", "docker ps")


@pytest.mark.parametrize(
    ("mode", "status", "word"),
    [
        ("default", "ok", "bridge"),
        ("shop_default", "ok", "shop_default"),
        ("none", "ok", "loopback"),
        ("container:abc", "ok", "shares"),
        ("host", "warn", "on the host already"),
    ],
)
def test_network(mode: str, status: str, word: str) -> None:
    judged(container_checks.check_network(info(network_mode=mode)), status, word)


def test_published() -> None:
    judged(container_checks.check_published(()), "ok", "no port")
    two = (PublishedPort("tcp", 80, "0.0.0.0", 8080), PublishedPort("udp", 53, "::", 53))
    judged(container_checks.check_published(two), "ok", "80 on 0.0.0.0:8080", "53/udp on :::53")


FULL = Probe(
    bash="5.2", devtcp=True, socat="1.7", netcats=(Netcat(("nc",), "openbsd-old"),), tools=frozenset({"cat", "sleep"})
)
NO_AGENT = AgentFacts(False, "the agent was not built for riscv64 containers")
AGENT = AgentFacts(True, "it can be put into /tmp")


def statuses(facts: LanesFacts) -> dict[str, str]:
    findings = container_checks.check_lanes(facts)
    assert all(finding.hint for finding in findings if finding.status == "fail")
    return {finding.id.removeprefix("lane-"): finding.status for finding in findings}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (LanesFacts(AGENT, FULL), "ok ok ok ok ok"),
        (LanesFacts(AGENT, Probe()), "ok ok ok ok ok"),
        (LanesFacts(AGENT, None, "no shell"), "ok ok ok ok ok"),
        (LanesFacts(NO_AGENT, FULL), "ok warn ok ok ok"),
        # What is wanting counts only where nothing better is there: an old nc, no bash at all.
        (LanesFacts(NO_AGENT, replace(FULL, socat="", devtcp=False)), "ok warn warn warn ok"),
        (LanesFacts(NO_AGENT, replace(FULL, socat="", netcats=())), "ok warn warn warn warn"),
        (LanesFacts(NO_AGENT, Probe()), "fail warn warn warn warn"),
        (LanesFacts(NO_AGENT, None, "the container has no shell"), "fail warn warn warn warn"),
        (LanesFacts(NO_AGENT, FULL, in_use="nc"), "ok warn ok ok ok"),
    ],
)
def test_lanes(facts: LanesFacts, expected: str) -> None:
    assert statuses(facts) == dict(zip(("lanes", "agent", "socat", "nc", "devtcp"), expected.split(), strict=True))


def test_lanes_say_what_they_lack_and_which_one_is_taken() -> None:
    said = {
        finding.id: f"{finding.text} {finding.hint}"
        for finding in container_checks.check_lanes(LanesFacts(NO_AGENT, FULL))
    }
    assert "socat lane would carry" in said["lanes"]
    assert "riscv64" in said["lane-agent"]
    assert "socat 1.7: lacks UDP;" in said["lane-socat"]
    assert "without -N" in said["lane-nc"]
    assert "lacks half-close, UDP" in said["lane-devtcp"]
    in_use = container_checks.check_lanes(LanesFacts(AGENT, FULL, in_use="nc"))[0]
    assert "nc lane carries its connections now" in in_use.text
    nothing = container_checks.check_lanes(LanesFacts(NO_AGENT, None, "the container has no shell"))
    assert "install socat" in (nothing[0].hint or "")
    assert "has no shell" in nothing[2].text


@pytest.mark.parametrize(("has", "status"), [(True, "ok"), (False, "ok"), (None, "warn")])
def test_ipv6_of_the_container(has: bool | None, status: str) -> None:
    judged(container_checks.check_container_ipv6(has), status)


BECOMES_ANYBODY = container_checks.SETUID | container_checks.SETGID


@pytest.mark.parametrize(
    ("user", "capabilities", "with_agent", "others", "status"),
    [
        (0, BECOMES_ANYBODY, True, {1000}, "ok"),
        (0, BECOMES_ANYBODY, False, {1000}, "warn"),
        (0, container_checks.SYS_PTRACE, False, {1000}, "ok"),
        (0, container_checks.SETUID, True, {1000}, "warn"),
        (1000, 0, True, {0, 33}, "warn"),
        (1000, BECOMES_ANYBODY, True, {0}, "warn"),
        (1000, 0, False, set(), "ok"),
    ],
)
def test_check_of_whether_owners_of_ports_can_be_seen(
    user: int, capabilities: int, with_agent: bool, others: set[int], status: str
) -> None:
    facts = container_checks.OwnersFacts(user, capabilities, frozenset(others))
    finding = container_checks.check_owners(facts, with_agent=with_agent)
    judged(finding, status, ", ".join(map(str, sorted(others))) if status == "warn" else "")


def test_owners_that_could_not_be_looked_at() -> None:
    judged(container_checks.check_owners(None, with_agent=True), "warn")


def test_configuration() -> None:
    judged(container_checks.check_configuration(()), "ok")
    judged(container_checks.check_configuration(["a", "b", "c"]), "warn", "a (and 2 more)")
    judged(container_checks.check_configuration((), "x.json:1:2: no value"), "fail", "x.json:1:2")


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", ["3000 is free"]),
        ({"state": "ours"}, "ok", ["held for it"]),
        ({"state": "taken", "holder": "nginx (pid 7)"}, "warn", ["nginx (pid 7)", "another number"]),
        ({"state": "taken", "holder": "nginx (pid 7)", "must": True}, "fail", ["nginx (pid 7)", "must be this one"]),
        ({"state": "taken"}, "warn", ["another program (the system"]),
        ({"state": "denied"}, "warn", ["privileged"]),
        ({"state": "denied", "problem": "below 1024: a pin takes it"}, "warn", ["a pin takes it", "another number"]),
        (
            {"state": "denied", "problem": "below 1024", "must": True},
            "fail",
            ["it must be this one", "elevateIfNeeded"],
        ),
        ({"state": "denied", "must": True}, "fail", ["ip_unprivileged_port_start=3000"]),
        ({"state": "unusable", "problem": "no such address"}, "fail", ["no such address"]),
    ],
)
def test_declared_ports(changes: dict[str, Any], status: str, words: list[str]) -> None:
    finding = container_checks.check_port(replace(PORT, **changes))
    assert finding.id == "port-3000"
    judged(finding, status, *words)


def test_the_id_of_a_udp_port() -> None:
    assert container_checks.check_port(replace(PORT, transport="udp")).id == "port-3000-udp"


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (5173, "ok", "port 5174 of web, which forwards it"),
        (5432, "warn", "port 5432 of web, whose server is not up: it is held, and nothing answers on it"),
        (6000, "warn", "port 6000 of shop, which is out of reach: the container is exited"),
        (7000, "warn", "in use by python3 (pid 7)"),
        (7001, "ok", "host port 7001 is free"),
    ],
)
def test_owner_of_a_host_port_is_named(number: int, status: str, words: str) -> None:
    def row(local: int, port: int, name: str, state: str, reason: str | None = None) -> dict[str, object]:
        return {
            "localPort": local, "port": port, "containerName": name, "status": state, "reason": reason, "id": "fwd-1"
        }  # fmt: skip

    rows = (
        row(5173, 5174, "web", "active"),
        row(5432, 5432, "web", "waiting"),
        row(6000, 6000, "shop", "reconnecting", "the container is exited"),
    )
    supervisor = host_checks.SupervisorFacts("running", forwards=rows)
    holder = "python3 (pid 7)" if number == 7000 else None
    finding = host_checks.check_host_port(number, supervisor, holder, is_free=number == 7001)
    assert (finding.status, words in finding.text) == (status, True), finding.text
    assert ("autoforward stop fwd-1" in (finding.hint or "")) == (number in (5432, 6000))

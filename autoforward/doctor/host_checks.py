"""Check the host: facts (the dataclasses) to a finding, one function each. Pure.

`host_probe.py` collects the facts. Nothing here reads a clock, a file or an engine.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from autoforward.config.environment import SessionEnvironment
from autoforward.core.model import EngineEndpoint
from autoforward.doctor.findings import Finding, fail, ok, warn
from autoforward.engine.endpoint import way_to_socket
from autoforward.state.folder import HOME_VARIABLE

MIN_API_VERSION = (1, 25)
"""The first API version in which an exec takes environment variables."""

CLOCK_TOLERANCE_S = 2.0

LEAST_DISK_BYTES = 1_000_000
"""Below this the next write of the registry or the log may fail."""

LOW_DISK_BYTES = 50_000_000

LEAST_DESCRIPTORS = 256
LOW_DESCRIPTORS = 4096
"""A connection takes one or two, a forward two: a page with many parts opens dozens."""

TESTED_ENGINES = ("docker", "podman")

SocketAccess = Literal["usable", "missing", "denied", "refused", "no socket"]
"""Access to the engine's Unix socket; `no socket`: another kind of endpoint."""


@dataclass(frozen=True, slots=True)
class EngineAbout:
    """The engine's description of itself. `clock_offset_s`: its clock minus this machine's, None if unknown."""

    name: str
    version: str
    api_version: str
    os: str
    architecture: str
    clock_offset_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """`endpoint` None: none was found. `about` None: it does not answer. `problem` and `hint` say why."""

    endpoint: EngineEndpoint | None
    access: SocketAccess = "no socket"
    about: EngineAbout | None = None
    problem: str = ""
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """The state folder. `kind` None: it does not exist, and `writable` is about its parent."""

    path: str
    kind: Literal["folder", "link", "other"] | None
    owner_uid: int
    our_uid: int
    mode: int
    writable: bool
    free_bytes: int
    free_files: int | None = None


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """`sessions`: rows of `status --json`; `forwards`: of `list --json`; `stored`: sessions in the registry."""

    state: Literal["running", "none", "silent"]
    version: str = ""
    pid: int = 0
    stored: int = 0
    problem: str = ""
    sessions: tuple[Mapping[str, object], ...] = ()
    forwards: tuple[Mapping[str, object], ...] = ()


def check_host_port(number: int, supervisor: SupervisorFacts, holder: str | None, *, is_free: bool) -> Finding:
    """Who has a host port. `holder`: the process that listens there, if known."""
    rows = [row for row in supervisor.forwards if row.get("localPort") == number and row.get("id") is not None]
    if rows:
        row = rows[0]
        why = {
            "active": "which forwards it",
            "waiting": "whose server is not up: it is held, and nothing answers on it",
        }
        what = why.get(str(row["status"]), f"which is out of reach: {row['reason']}")
        text = f"host port {number} belongs to port {row['port']} of {row['containerName']}, {what}"
        if row["status"] == "active":
            return ok("host-port", text)
        return warn("host-port", text, f"`autoforward stop {row['id']}` frees it")
    if is_free:
        return ok("host-port", f"host port {number} is free")
    by = holder or "a program that the system does not name"
    return warn("host-port", f"host port {number} is in use by {by}", "end that, or choose another number")


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """The installed service. `program`: what it starts; `state`, `detail`: as its manager reports them."""

    path: str
    program: str
    program_is_there: bool
    state: str
    at_login: bool = True
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CliFacts:
    """The devcontainer CLI. `named`: by a flag or variable, so that no other is searched for."""

    path: str | None
    source: str = ""
    version: str | None = None
    problem: str = ""
    hint: str | None = None
    named: bool = False


@dataclass(frozen=True, slots=True)
class LoopbackFacts:
    """Whether a socket can be bound on 127.0.0.1 and on ::1: None, or why not."""

    ipv4_problem: str | None
    ipv6_problem: str | None


def check_engine(facts: EngineFacts) -> Finding:
    if facts.endpoint is None:
        return fail("engine", facts.problem, facts.hint or "name one with --docker-host or --context")
    where = f"{facts.endpoint.host} (from {facts.endpoint.source})"
    if facts.about is not None:
        return ok("engine", f"the engine at {where} answers")
    why = {
        "missing": "its socket is not there",
        "denied": "you may not use its socket",
        "refused": "nothing listens on its socket",
    }.get(facts.access, facts.problem)
    hint = (
        "start it (`sudo systemctl start docker`, or Docker Desktop), or name another with --docker-host or --context"
    )
    if facts.access == "denied":
        hint = "see engine-access"
    if facts.access == "no socket" and facts.hint is not None:  # the failed connection has a better hint
        hint = facts.hint
    return fail("engine", f"the engine at {where} does not answer: {why}", hint)


def check_engine_access(facts: EngineFacts) -> Finding:
    match facts.access:
        case "denied":
            return fail(
                "engine-access",
                "you may not use the engine's socket",
                way_to_socket((facts.endpoint and facts.endpoint.socket_path) or ""),
            )
        case "usable":
            return ok("engine-access", "you may use the engine's socket")
        case "no socket" if facts.about is not None:
            return ok("engine-access", "the engine takes requests over the network")
    return warn("engine-access", "whether you may use the engine is unknown: it does not answer")


def check_engine_version(about: EngineAbout) -> Finding:
    what = f"{about.name} {about.version}, API {about.api_version}, {about.os}/{about.architecture}"
    numbers = about.api_version.split(".")
    known = len(numbers) == 2 and all(number.isdecimal() for number in numbers)
    if known and (int(numbers[0]), int(numbers[1])) < MIN_API_VERSION:
        least = ".".join(map(str, MIN_API_VERSION))
        return fail("engine-version", f"{what}: too old", f"API {least} is needed: Docker 1.13 or newer")
    if about.os != "linux":
        return fail("engine-version", f"{what}: it runs no Linux containers", "switch it to Linux containers")
    if not any(name in about.name.lower() for name in TESTED_ENGINES):
        return warn("engine-version", f"{what}: it is not tested", "please report what does not work")
    return ok("engine-version", what)


def check_clock(about: EngineAbout) -> Finding:
    offset_s = about.clock_offset_s
    if offset_s is None:
        return warn("clock", "the engine does not report its time")
    if abs(offset_s) <= CLOCK_TOLERANCE_S:
        return ok("clock", "the engine's clock matches this machine's")
    way = "ahead of" if offset_s > 0 else "behind"
    return warn(
        "clock",
        f"the engine's clock is {abs(offset_s):.0f} s {way} this machine's: times of events and of its logs do not fit",
        "set both by NTP; a virtual machine may have slept: restart it",
    )


def check_state_folder(facts: FolderFacts) -> Finding:
    elsewhere = f"or set {HOME_VARIABLE} to another folder"
    if facts.kind is None:
        if facts.writable:
            return ok("state-folder", f"{facts.path} will be made when it is needed")
        return fail(
            "state-folder", f"{facts.path} cannot be made", f"set {HOME_VARIABLE} to a folder that can be written"
        )
    if facts.kind != "folder":
        what = "a symbolic link" if facts.kind == "link" else "not a folder"
        return fail("state-folder", f"{facts.path} is {what}", f"remove it, {elsewhere}")
    if facts.owner_uid != facts.our_uid:
        return fail(
            "state-folder",
            f"{facts.path} belongs to user id {facts.owner_uid}, not to {facts.our_uid}",
            f"give it back to yourself alone, {elsewhere}",
        )
    mode = f"{stat.S_IMODE(facts.mode):04o}"
    if facts.mode & 0o022:
        return fail(
            "state-folder",
            f"{facts.path} can be written by others (mode {mode})",
            f"check what is in it, then: chmod 700 {facts.path}",
        )
    if not facts.writable:
        return fail("state-folder", f"{facts.path} cannot be written", f"make it writable, {elsewhere}")
    if facts.mode & 0o077:
        return warn("state-folder", f"{facts.path} can be read by others (mode {mode})", "the next command closes it")
    return ok("state-folder", f"{facts.path}, yours alone")


def check_disk(facts: FolderFacts) -> Finding:
    free = f"{facts.free_bytes / 1e6:,.0f} MB free for {facts.path}"
    hint = "remove something there; forwards go on, but leases and events are not written"
    if facts.free_files == 0:
        return fail("disk", f"no file can be made any more (no inodes) for {facts.path}", hint)
    if facts.free_bytes < LEAST_DISK_BYTES:
        return fail("disk", free, hint)
    return warn("disk", free, hint) if facts.free_bytes < LOW_DISK_BYTES else ok("disk", free)


def check_supervisor(facts: SupervisorFacts, our_version: str) -> Finding:
    if facts.state == "silent":
        return fail("supervisor", f"the supervisor does not answer: {facts.problem}", "`autoforward restart`")
    if facts.state == "none":
        if facts.stored:
            text = f"no supervisor runs, and {facts.stored} session(s) wait for one"
            return warn("supervisor", text, "`autoforward list` brings them back")
        return ok("supervisor", "none runs; the first `attach` or `forward` starts one")
    if facts.version != our_version:
        text = f"the supervisor that runs is version {facts.version}, this is {our_version}"
        return warn("supervisor", text, "`autoforward restart`")
    return ok("supervisor", f"runs, version {facts.version}, pid {facts.pid}, {len(facts.sessions)} session(s)")


def check_service(facts: ServiceFacts) -> Finding:
    """Never a failure: everything that the service does can be done by hand."""
    if not facts.program_is_there:
        text = f"the service starts {facts.program}, which is not there any more"
        return warn(
            "service", text, "`autoforward service install` repairs it, `autoforward service uninstall` ends it"
        )
    if facts.state == "unknown":
        return warn("service", f"installed ({facts.path}), but its state is unknown: {facts.detail}")
    if facts.state not in ("running", "starting"):
        text = f"installed, but not running: {facts.detail or facts.state}"
        return warn(
            "service",
            text,
            "`autoforward service install` starts it; `journalctl --user -u autoforward` shows its output",
        )
    if not facts.at_login:
        return warn("service", "it runs, but is not started at login", "`autoforward service install`")
    return ok("service", f"`autoforward watch` is started at login, and runs ({facts.path})")


def check_devcontainer_cli(facts: CliFacts) -> Finding:
    """Only `devup` needs it."""
    if facts.path is None:
        found = fail if facts.named else warn
        return found("devcontainer-cli", facts.problem, facts.hint or "name another, or none")
    if facts.version is None:
        hint = "run it yourself; `devup` needs it, nothing else does"
        return warn("devcontainer-cli", f"{facts.path} (from {facts.source}): {facts.problem}", hint)
    return ok("devcontainer-cli", f"{facts.path} (from {facts.source}), version {facts.version}")


def check_agent_package(built: Mapping[str, bool], engine_architecture: str | None) -> Finding:
    """`built`: by architecture. Only the engine's own must be there; other containers are emulated."""
    there = [name for name, is_built in built.items() if is_built]
    missing = [name for name, is_built in built.items() if not is_built]
    hint = "install a C compiler and make, then autoforward again; or a wheel that has it"
    if not there:
        return warn("agent", "no agent is in this installation: the slower shell lanes carry everything", hint)
    if engine_architecture in missing:
        text = f"the agent is built for {' and '.join(there)}, not for this engine's {engine_architecture}"
        return warn("agent", text, hint)
    rest = f"; not for {' or '.join(missing)} containers" if missing else ""
    return ok("agent", f"built for {' and '.join(there)}{rest}")


def check_loopback(facts: LoopbackFacts) -> Finding:
    if facts.ipv4_problem is not None:
        return fail("loopback", f"127.0.0.1 cannot be bound: {facts.ipv4_problem}", "bring it up: `ip link set lo up`")
    if facts.ipv6_problem is not None:
        return warn(
            "loopback",
            f"no IPv6 on this machine (::1: {facts.ipv6_problem}): forwards listen on 127.0.0.1 alone",
            "`http://localhost` works all the same; `sysctl net.ipv6.conf.lo.disable_ipv6=0` brings it back",
        )
    return ok("loopback", "127.0.0.1 and ::1 can be bound")


def check_privileged_ports(lowest_port: int | None) -> Finding:
    """`lowest_port`: the lowest that any user may bind; None if unknown."""
    if lowest_port is None:
        return warn("privileged-ports", "the system does not say which ports you may bind")
    if lowest_port <= 1:
        return ok("privileged-ports", "you may bind every port")
    return ok("privileged-ports", f"ports below {lowest_port} are the system's: 80 is forwarded on 8080")


def check_descriptors(limit: int | None) -> Finding:
    """`limit`: the hard limit, None for unlimited; the supervisor raises its own up to it."""
    hint = "raise it: `ulimit -Hn`, or LimitNOFILE of the service"
    if limit is None or limit >= LOW_DESCRIPTORS:
        return ok(
            "descriptors", f"the supervisor may open {'any number of' if limit is None else limit} files and sockets"
        )
    text = f"the supervisor may open {limit} files and sockets: fewer connections at once"
    return fail("descriptors", text, hint) if limit < LEAST_DESCRIPTORS else warn("descriptors", text, hint)


def check_desktop(environment: SessionEnvironment, platform: str) -> Finding:
    if environment.in_ci:
        return ok("desktop", "CI is set: nothing is shown or opened")
    shows = environment.has_notifications(platform)
    if shows:
        return ok("desktop", "notifications are shown, URLs are opened")
    if environment.has_display(platform):
        hint = "log in on the desktop, or set DBUS_SESSION_BUS_ADDRESS"
        return warn("desktop", "URLs are opened, but there is no session bus for notifications", hint)
    if environment.browser is not None:
        return ok("desktop", f"no display: no notifications; URLs are given to {environment.browser}")
    return ok("desktop", "no display: no notifications, and no browser is opened")

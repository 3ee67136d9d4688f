"""Check the TARGET: facts (the dataclasses) to findings, one function each. Pure.

`container_probe.py` collects the facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoforward.core.choices import LaneChoice
from autoforward.core.model import ContainerInfo, PublishedPort, Transport
from autoforward.doctor.findings import Finding, fail, ok, warn
from autoforward.lanes.probe import NO_LANE_HINT, NoLane, Probe, choose_lane
from autoforward.lanes.relay_tools import RelayTool

_SHELL_LANES: tuple[LaneChoice, ...] = ("socat", "nc", "devtcp")
_MISSING = {"socat": "not there", "nc": "none of a known kind", "devtcp": "no bash with /dev/tcp, or no cat"}
_INSTALL = {"socat": "install socat", "nc": "install netcat-openbsd", "devtcp": "install bash and cat"}


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """Whether the agent can run there, without installing it; `text` says how or why not."""

    usable: bool
    text: str


SETGID, SETUID, SYS_PTRACE = (1 << number for number in (6, 7, 19))
"""Bits of capability masks."""


@dataclass(frozen=True, slots=True)
class OwnersFacts:
    """How autoforward's processes run in the container: as which user, with which capabilities (bits).

    `others`: ids of other users with listening sockets.
    """

    user: int
    capabilities: int
    others: frozenset[int]

    def sees_all(self, *, with_agent: bool) -> bool:
        can_change_user = with_agent and self.user == 0 and self.capabilities & SETUID and self.capabilities & SETGID
        return bool(self.capabilities & SYS_PTRACE or can_change_user)


@dataclass(frozen=True, slots=True)
class LanesFacts:
    """`probe` None: the container could not be probed, for `problem`. `in_use`: the lane of its session."""

    agent: AgentFacts
    probe: Probe | None
    problem: str = ""
    in_use: str | None = None

    @property
    def carries_agent(self) -> bool:
        """Whether the agent is or would be the lane."""
        return self.in_use == "agent" if self.in_use is not None else self.agent.usable


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A declared port and its host port. `must`: no other number will do. `holder`: who has it, if known.

    `problem`: why it is unusable, or not forwarded (`left`: as configured, `refused`: not granted); `note`: a request
    that was not granted and that it can do without.
    """

    text: str
    container_port: int
    transport: Transport
    host_port: int
    must: bool
    state: Literal["free", "ours", "taken", "denied", "unusable", "left", "refused"]
    holder: str | None = None
    problem: str = ""
    note: str | None = None


def check_target(info: ContainerInfo | None, problem: str = "", hint: str | None = None) -> Finding:
    if info is None:
        return fail("target", problem, hint or "`docker ps` lists the containers")
    return ok("target", f"container {info.name} ({info.container_id[:12]}) runs")


def check_network(info: ContainerInfo) -> Finding:
    mode = info.network_mode
    if mode == "host":
        return warn(
            "network",
            "the container is on the host's network: its ports are on the host already, nothing is forwarded",
            "open them as they are, or start it on a network of its own",
        )
    if mode == "none":
        return ok("network", "the container has no network but its own loopback, which is enough")
    if mode.startswith("container:"):
        return ok("network", "the container shares another one's network: the other's servers are found here too")
    return ok("network", f"network {'bridge' if mode == 'default' else mode or 'unknown'}")


def check_published(published: Sequence[PublishedPort]) -> Finding:
    if not published:
        return ok("published", "the engine publishes no port of it")
    ports = ", ".join(
        f"{port.container_port}{'/udp' if port.transport == 'udp' else ''} on {port.host_ip}:{port.host_port}"
        for port in published
    )
    return ok("published", f"published by the engine, and not forwarded: {ports}")


def check_lanes(facts: LanesFacts) -> list[Finding]:
    """The verdict `lanes`, then a finding per lane: what it can do, or why it is unusable."""
    findings = [_check_agent(facts)]
    usable = ["agent"] if facts.agent.usable else []
    for lane in _SHELL_LANES:
        tool = choose_lane(facts.probe, lane) if facts.probe is not None else NoLane(facts.problem, (lane,))
        finding = _check_shell_lane(lane, tool, facts, needed=not usable)
        findings.append(finding)
        if isinstance(tool, RelayTool):
            usable.append(lane)
    return [_verdict(facts, usable), *findings]


def _verdict(facts: LanesFacts, usable: Sequence[str]) -> Finding:
    if facts.in_use is not None:
        return ok("lanes", f"the {facts.in_use} lane carries its connections now")
    if usable:
        return ok("lanes", f"the {usable[0]} lane would carry its connections")
    return fail("lanes", "nothing in the container can carry a connection", NO_LANE_HINT)


def _check_agent(facts: LanesFacts) -> Finding:
    if facts.agent.usable:
        return ok("lane-agent", f"agent: half-close, UDP, IPv6; {facts.agent.text}")
    return warn("lane-agent", f"agent: {facts.agent.text}", "without it: no UDP, slower detection and connections")


def _check_shell_lane(lane: LaneChoice, tool: RelayTool | NoLane, facts: LanesFacts, *, needed: bool) -> Finding:
    name = f"lane-{lane}"
    if isinstance(tool, NoLane):
        why = _MISSING[lane] if facts.probe is not None else facts.problem
        # A missing lane matters only without a better one.
        return warn(name, f"{lane}: {why}", _INSTALL[lane]) if needed else ok(name, f"{lane}: {why}; not needed")
    can = tool.capabilities
    lacks = [word for word, has in (("half-close", can.half_close), ("UDP", can.udp), ("IPv6", can.ipv6)) if not has]
    version = f" {facts.probe.socat}" if lane == "socat" and facts.probe is not None else ""
    text = f"{lane}{version}: lacks {', '.join(lacks)}; {can.note}"
    if needed and not can.half_close:
        return warn(name, text, "install socat in the image")
    return ok(name, text)


def check_container_ipv6(has_loopback: bool | None) -> Finding:
    """`has_loopback`: whether ::1 is up; None: unknown."""
    if has_loopback is None:
        return warn("container-ipv6", "whether the container has IPv6 is unknown (no shell in it)")
    if has_loopback:
        return ok("container-ipv6", "the container has ::1")
    return ok("container-ipv6", "the container has no IPv6: its servers listen on IPv4")


def check_owners(facts: OwnersFacts | None, *, with_agent: bool) -> Finding:
    """Whether the owners of ports are visible: PROCESS, expressions and known servers need them."""
    if facts is None:
        return warn(
            "owners", "whether it can be seen whose ports are in the container is not known (no shell, or no cat)"
        )
    if facts.sees_all(with_agent=with_agent):
        return ok("owners", "whose a port is can be seen, whichever user's it is")
    if not facts.others:
        return ok("owners", f"whose a port is can be seen for user {facts.user}, who has all listening sockets")
    users = ", ".join(map(str, sorted(facts.others)[:5])) + (", …" if len(facts.others) > 5 else "")
    return warn(
        "owners",
        f"user {facts.user} cannot read whose the ports of user {users} are: no PROCESS, and no expression matches them",
        "run the servers as the container's user, or name their ports by number",
    )


def check_direct(is_on: bool, reason: str | None) -> Finding:
    """Whether connections bypass the engine, over the container's network."""
    if is_on:
        return ok("direct", "direct: on" + (f": {reason}" if reason else ""))
    return ok("direct", f"direct: off: {reason}; the engine's stream carries everything")


def check_configuration(warnings: Sequence[str], problem: str | None = None, hint: str | None = None) -> Finding:
    """The warnings of its devcontainer.json and settings; `problem` is why they are not in effect."""
    if problem is not None:
        return fail("configuration", problem, hint or "fix it there")
    if warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        return warn("configuration", f"{warnings[0]}{more}", "fix it there; the rest is in force")
    return ok("configuration", "its devcontainer.json and settings are valid")


def check_port(facts: PortFacts) -> Finding:
    """One declared port. The id is `port-` and the container port, with `-udp` for UDP."""
    finding = _check_number(facts)
    if facts.note is None:
        return finding
    hint = finding.hint or "approve it, or pin 1024 or higher"
    return replace(
        finding,
        status="warn" if finding.status == "ok" else finding.status,
        text=f"{finding.text}; {facts.note}",
        hint=hint,
    )


def _check_number(facts: PortFacts) -> Finding:
    name = f"port-{facts.container_port}" + ("-udp" if facts.transport == "udp" else "")
    what = f"declared port {facts.text}: host port {facts.host_port}"
    holder = facts.holder or "another program (the system does not tell which)"
    match facts.state:
        case "left":
            return ok(name, f"declared port {facts.text} is not forwarded: {facts.problem}")
        case "refused":
            return fail(name, f"declared port {facts.text}: {facts.problem}", "approve it, or pin 1024 or higher")
        case "free":
            return ok(name, f"{what} is free")
        case "ours":
            return ok(name, f"{what} is held for it")
        case "taken" if facts.must:
            return fail(name, f"{what} is held by {holder}, and it must be this one", "end that, or pin another number")
        case "taken":
            return warn(name, f"{what} is held by {holder}: another number is taken", "`autoforward list` shows which")
        case "denied" if facts.problem:
            problem = f"declared port {facts.text}: {facts.problem}"
            if facts.must:
                return fail(name, f"{problem}; it must be this one", "set elevateIfNeeded, then `autoforward trust`")
            return warn(name, f"{problem}; another number is taken", "`autoforward list` shows which")
        case "denied" if facts.must:
            hint = f"pin 1024 or higher, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={facts.host_port}"
            return fail(name, f"{what} is privileged, and it must be this one", hint)
        case "denied":
            return warn(name, f"{what} is privileged: another number is taken", "`autoforward list` shows which")
    return fail(name, f"{what} cannot be bound: {facts.problem}", "choose another address with --bind, or none")


def check_no_ports() -> Finding:
    return ok("ports", "no port is declared: what starts to listen is forwarded")

"""Collect facts about the TARGET for `container_checks.py`: short execs that end by themselves; installs nothing. Blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import AutoforwardError
from autoforward.core.identity.network_sharing import DirectPath
from autoforward.core.model import FIRST_UNPRIVILEGED, ContainerInfo
from autoforward.core.text import decoded_line
from autoforward.detection.proc_net import parse_proc_net_tcp
from autoforward.doctor.container_checks import AgentFacts, LanesFacts, OwnersFacts, PortFacts
from autoforward.engine.client import Engine
from autoforward.engine.network_inspector import NetworkInspector
from autoforward.engine.network_rule import rule_for
from autoforward.forwards.candidates import not_taken
from autoforward.forwards.plan import plan
from autoforward.forwards.session_rules import rules_of
from autoforward.lanes import agent_install
from autoforward.lanes.probe import Probe
from autoforward.lanes.probing import NoShellError, probe_container, run_in_container
from autoforward.net.bound_pair import (
    HostPortDeniedError,
    HostPortError,
    HostPortTakenError,
    bind_pair,
    lowest_bindable_port,
    owners_of_ports,
)

# `cat` is no builtin and may be missing: its error message is part of neither file.
_ASK = (
    "echo AF mounts; cat /proc/self/mounts 2>/dev/null; echo AF inet6; cat /proc/net/if_inet6 2>/dev/null; echo AF end;"
    "cat /proc/self/status 2>/dev/null; echo AF sockets; cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; echo AF done"
)

VERSION = b"autoforward-agent protocol 1\n"

_LOOPBACK_ROW = b"00000000000000000000000000000001 "


class Inside:
    """Facts from inside a container: `probe` None for `problem`; `mounts` are (folder, options)."""

    def __init__(self, engine: Engine, info: ContainerInfo) -> None:
        self.probe: Probe | None = None
        self.problem = ""
        self.nothing_runs = False
        """Whether the engine can start no process there at all, shell or not."""
        self.mounts: tuple[tuple[str, frozenset[str]], ...] = ()
        self.has_ipv6: bool | None = None
        self.owners: OwnersFacts | None = None
        try:
            self.probe = probe_container(engine, info.container_id)
            if "cat" in self.probe.tools:
                report = run_in_container(engine, info.container_id, ["sh", "-c", _ASK])[0]
                self.mounts, self.has_ipv6 = parse_report(report)
                self.owners = parse_owners(report)
        except NoShellError as error:
            self.problem, self.nothing_runs = str(error), error.nothing_runs
        except AutoforwardError as error:
            self.problem = self.problem or str(error)


def parse_report(report: bytes) -> tuple[tuple[tuple[str, frozenset[str]], ...], bool | None]:
    """Mounts, and whether ::1 is up (None if the report is incomplete). Invalid rows are skipped."""
    _, _, rest = report.partition(b"AF mounts\n")
    mounts, found, rest = rest.partition(b"AF inet6\n")
    rows = [line.split(b" ") for line in mounts.splitlines()[:1000]]
    parsed = tuple(
        (row[1].decode("utf-8", "replace"), frozenset(row[3].decode("ascii", "replace").split(",")))
        for row in rows
        if len(row) >= 4
    )
    addresses, ended, _ = rest.partition(b"AF end\n")
    return parsed, (_LOOPBACK_ROW in addresses) if found and ended else None


def parse_owners(report: bytes) -> OwnersFacts | None:
    """User, capabilities and the owners of listening sockets; None if the report is incomplete."""
    _, ended, rest = report.partition(b"AF end\n")
    status, found, rest = rest.partition(b"AF sockets\n")
    table, done, _ = rest.partition(b"AF done\n")
    user = re.search(rb"^Uid:\t\d{1,10}\t(\d{1,10})\t", status, re.MULTILINE)
    capabilities = re.search(rb"^CapEff:\t([0-9a-f]{1,16})$", status, re.MULTILINE)
    if not (ended and found and done) or user is None or capabilities is None:
        return None
    others = frozenset(row.uid for row in parse_proc_net_tcp(table).listening) - {int(user[1])}
    return OwnersFacts(int(user[1]), int(capabilities[1], 16), others)


def is_noexec(folder: str, mounts: Iterable[tuple[str, frozenset[str]]]) -> bool:
    """Whether programs below `folder` cannot be executed: the last of the innermost mounts decides."""
    best, options = -1, frozenset[str]()
    for place, its in mounts:
        if (folder == place or place == "/" or folder.startswith(f"{place}/")) and len(place) >= best:
            best, options = len(place), its
    return "noexec" in options


def probe_lanes(engine: Engine, info: ContainerInfo, inside: Inside, session: Mapping[str, Any] | None) -> LanesFacts:
    """`session`: the container's row of `status --json`, or None."""
    lane = session["lane"] if session is not None else None
    in_use = str(lane["name"]) if lane is not None else None
    agent = AgentFacts(True, "in use") if in_use == "agent" else _probe_agent(engine, info, inside)
    if agent.usable and lane is not None and in_use != "agent" and "agent" in str(lane["note"]):
        agent = AgentFacts(False, str(lane["note"]))  # it was tried
    return LanesFacts(agent, inside.probe, inside.problem, in_use)


def probe_direct(
    engine: Engine, info: ContainerInfo, wanted: bool | None, session: Mapping[str, Any] | None
) -> tuple[bool, str | None]:
    """Whether connections may bypass the engine, and the reason: its session's, or what would apply."""
    if session is not None and (used := session.get("direct")) is not None:
        return bool(used["on"]), used["reason"]
    rule = rule_for(engine.endpoint, info, wanted)
    path = rule.path
    if rule.is_automatic:
        try:
            found = NetworkInspector(engine).inspect([info.container_id]).get(info.container_id)
            path = found[0] if found is not None else path
        except AutoforwardError as error:
            path = DirectPath(None, str(error))
    return path.address is not None, path.reason


def _probe_agent(engine: Engine, info: ContainerInfo, inside: Inside) -> AgentFacts:
    try:
        binary = agent_install.agent_binary(agent_install.built_for(agent_install.architectures(engine, info))[0])
    except agent_install.NoAgentError as error:
        return AgentFacts(False, str(error))
    if inside.nothing_runs:
        return AgentFacts(False, inside.problem)
    found = [place for place in agent_install.places(info) if not info.read_only or place in info.writable_volumes]
    if not found:
        return AgentFacts(False, "it cannot be put there: the file system is read-only, and there is no volume")
    found = [place for place in found if not is_noexec(place, inside.mounts)]
    if not found:
        return AgentFacts(False, "it cannot run there: what can be written is mounted noexec")
    problems = []
    for place in found:
        path = f"{place.rstrip('/')}/{agent_install.FOLDER}/{agent_install.agent_name(binary)}"
        try:
            facts = agent_install.inspect_place(engine, info, place, path, binary)
        except AutoforwardError as error:
            facts = agent_install.PlaceFacts(str(error), is_there=False)
        if facts.problem is None and facts.is_there:
            said = run_in_container(engine, info.container_id, [path, "--version"])[0]
            if said.startswith(VERSION):
                return AgentFacts(True, f"it is there, and runs: {path}")
            facts = agent_install.PlaceFacts(
                f"it does not run: {decoded_line(said) or 'it says nothing'}", is_there=True
            )
        elif facts.problem is None:
            return AgentFacts(True, f"it can be put into {place}")
        problems.append(f"{place}: {facts.problem}")
    return AgentFacts(False, f"it cannot be put there ({'; '.join(problems)})")


def probe_ports(record: SessionRecord, forwards: Sequence[Mapping[str, Any]]) -> list[PortFacts]:
    """Each declared port as its session would have it: its host port is bound for a moment, unless the supervisor holds it.

    `forwards`: the supervisor's rows.
    """
    held = {(row["transport"], row["localPort"]): row for row in forwards if row["localPort"] is not None}
    rules = rules_of(record, None, (), frozenset(), None, None, {})
    planned = plan(replace(rules, udp=True, max_forwards=len(record.declared)), (), {}, 0.0)
    ports = []
    for spec in record.declared:
        attributes = record.rules.resolve(spec.key)
        if (notice := planned.notices.get(spec.key)) is not None:
            state: Literal["left", "refused"] = "refused" if notice.status == "failed" else "left"
            number = spec.number
            ports.append(
                PortFacts(spec.text, spec.container_port, spec.transport, number, False, state, problem=notice.reason)
            )
            continue
        forward = planned.forwards[spec.key]
        wanted = forward.pinned_host_port or spec.container_port
        must = forward.pinned_host_port is not None or bool(attributes.require_local_port)
        row = held.get((spec.transport, wanted))
        facts = PortFacts(spec.text, spec.container_port, spec.transport, wanted, must, "free", note=forward.note)
        if row is not None and row["containerId"] == record.container_id and row["port"] == spec.container_port:
            ports.append(replace(facts, state="ours"))
        elif row is not None:
            ports.append(replace(facts, state="taken", holder=f"autoforward, for {row['containerName']}"))
        elif wanted < FIRST_UNPRIVILEGED and forward.pinned_host_port is None and not attributes.elevate_if_needed:
            ports.append(replace(facts, state="denied", problem=not_taken(wanted, lowest_bindable_port())))
        else:
            ports.append(tried(facts, record.options.bind or "127.0.0.1"))
    return ports


def tried(facts: PortFacts, host_ip: str) -> PortFacts:
    try:
        bind_pair(host_ip, facts.host_port, facts.transport).close()
    except HostPortTakenError:
        return replace(
            facts, state="taken", holder=owners_of_ports({facts.host_port}, facts.transport).get(facts.host_port)
        )
    except HostPortDeniedError:
        return replace(facts, state="denied")
    except HostPortError as error:
        return replace(facts, state="unusable", problem=str(error))
    return facts

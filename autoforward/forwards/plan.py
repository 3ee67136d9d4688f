"""Plan what should be forwarded: a pure function of what the user asked for, what listens, and the time.

Level-triggered: each call takes a complete snapshot and returns the whole wanted state, so that the next call repairs
what was missed. `reconcile` compares it with the current forwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from autoforward.core.addresses import WILDCARDS, is_loopback
from autoforward.core.model import (
    FIRST_UNPRIVILEGED,
    DialAddress,
    ForwardKey,
    PortAttributes,
    PortSpec,
    PublishedPort,
    ServerProcess,
    Snapshot,
    Source,
)
from autoforward.core.setting_values import DEFAULT_MAX_PORTS, NOTHING, LocalPorts, PortFilter, host_port_for
from autoforward.detection.known_servers import exclusion_reason, may_be_brief
from autoforward.detection.proc_net import dial_addresses
from autoforward.devcontainers.port_attributes import NO_RULES, AttributeRules
from autoforward.forwards.port_claims import NOWHERE_ELSE, ClaimedBy

WITHDRAWAL_GRACE_S = 1.5
"""A server that restarts under a file watcher is back within this time; its port stays."""

PROCESS_WAIT_S = 0.2
"""If attributes depend on the process, a new port is not forwarded before the process is known or this time has passed:
else an ignored port would be forwarded for a moment. Usually it is known with the snapshot.
"""

BRIEF_S = 2.0
"""A port that a debugger may have opened for a moment (`may_be_brief`) is not forwarded before it has been there for so long:
0.1 s is what one was seen for on an idle machine, 0.7 s on a busy one."""

MAX_CONSIDERED_FACTOR = 4
"""Times the limit: how many excess ports get a reason of their own. All of 4,096 took 30 ms."""

EPHEMERAL_UDP = 32_768
"""From here on a bound UDP socket is most likely a client's (a resolver waiting for its answer)."""

ON_OUR_NETWORK = "the container is on the network that autoforward itself is on: its ports are here already"


NO_PROCESSES: Mapping[ForwardKey, ServerProcess | None] = {}

UnforwardedStatus = Literal["published", "ignored", "failed"]


@dataclass(frozen=True, slots=True)
class SessionRules:
    """Everything but snapshot and time that decides about one session's ports.

    `blocked`: why nothing can be relayed (no lane), or None. `udp`: whether the lane carries datagrams. `ports_are_here`: why
    the container's own ports need no forward, or None. `elsewhere`: own ports that another container's session has.
    `default_exclude`: known non-user servers are not forwarded automatically. `firm`: the user's exclusions; it and
    `include_known` limit what `include` overrides, depending on whether `include` is the user's (`include_is_own`). Host
    ports from `lowest_port` to 1023 are for command lines and for `low_ports`; `way_out`: how the user grants others, which
    the keys in `asked_low` ask for. `wait_for_server_s`: how long new connections to a port without a server wait; 0: they
    are refused.
    """

    auto: bool = True
    declared: tuple[PortSpec, ...] = ()
    manual: tuple[PortSpec, ...] = ()
    attributes: AttributeRules = NO_RULES
    exclude: PortFilter = NOTHING
    include: PortFilter = NOTHING
    firm: PortFilter = NOTHING
    include_known: bool = True
    include_is_own: bool = True
    local_ports: tuple[LocalPorts, ...] = ()
    low_ports: tuple[LocalPorts, ...] = ()
    asked_low: frozenset[str] = frozenset()
    lowest_port: int = FIRST_UNPRIVILEGED
    way_out: str = ""
    published: tuple[PublishedPort, ...] = ()
    ports_are_here: str | None = None
    stopped: frozenset[ForwardKey] = frozenset()
    blocked: str | None = None
    udp: bool = False
    auto_udp: bool = False
    max_forwards: int = DEFAULT_MAX_PORTS
    default_exclude: bool = False
    elsewhere: Mapping[ForwardKey, ClaimedBy] = field(default_factory=lambda: NOWHERE_ELSE)
    wait_for_server_s: float = 0.0
    withdrawal_grace_s: float = WITHDRAWAL_GRACE_S

    @property
    def probe_processes(self) -> bool:
        """Whether a port's process can matter."""
        return self.default_exclude or self.attributes.probe_processes or bool(self.exclude.processes)


@dataclass(frozen=True, slots=True)
class ObservedPort:
    """A port that listens or did a moment ago: its addresses, and when it vanished (monotonic seconds).

    None while it listens: snapshots come only after changes, so the last one may be hours old. `process`: its owner, if
    known. Nothing is decided about it before `decide_at_s`.
    """

    addresses: frozenset[str]
    gone_at_s: float | None = None
    returning: bool = False
    """Its container was away, and it has not been seen since."""
    process: ServerProcess | None = None
    decide_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class WantedForward:
    """One wanted forward. `serving` False: hold the host port, but refuse connections (`waiting`).

    With `holds_s` they wait for that long instead. `note`: its peculiarity, for people.
    """

    key: ForwardKey
    dials: tuple[DialAddress, ...]
    source: Source
    attributes: PortAttributes
    pinned_host_port: int | None
    serving: bool
    process: str | None = None
    note: str | None = None
    dials_from_ipv6: tuple[DialAddress, ...] = ()
    """For clients of the host's IPv6 address, if different from `dials`."""
    holds_s: float = 0.0

    @property
    def accepts(self) -> bool:
        """Whether the host port listens."""
        return self.serving or self.holds_s > 0


@dataclass(frozen=True, slots=True)
class UnforwardedPort:
    """A port that is not forwarded, and why. `host_ip`/`host_port`: where the engine publishes it."""

    key: ForwardKey
    status: UnforwardedStatus
    reason: str
    source: Source
    attributes: PortAttributes
    host_ip: str | None = None
    host_port: int | None = None
    process: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The ports without a forward or notice of their own: `fact` without their number, `now` with it."""

    fact: str
    now: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The wanted state, except `overflow` ports beyond the limit. `recheck_at_s`: when time alone changes the plan.

    `summary`: text about ports without a forward or notice; None without such ports. `undecided`: ports whose process is not
    known yet.
    """

    forwards: Mapping[ForwardKey, WantedForward]
    notices: Mapping[ForwardKey, UnforwardedPort]
    seen: Mapping[ForwardKey, ObservedPort]
    overflow: int = 0
    recheck_at_s: float | None = None
    summary: Summary | None = None
    undecided: int = 0
    came_back: frozenset[ForwardKey] = frozenset()
    """Ports that are seen again after their server or container was away."""

    @property
    def returning(self) -> frozenset[ForwardKey]:
        """Ports whose servers may come back: connections wait for them."""
        return frozenset(key for key, seen in self.seen.items() if seen.returning)


def plan(
    rules: SessionRules,
    snapshot: Snapshot,
    before: Mapping[ForwardKey, ObservedPort],
    now_s: float,
    processes: Mapping[ForwardKey, ServerProcess | None] = NO_PROCESSES,
) -> Plan:
    """The wanted state. `before`: the last plan's `seen` (of this container: the grace depends on it).

    `processes`: the owner of each port; None if it was not found, missing if it may still come.
    """
    wait_s = PROCESS_WAIT_S if rules.probe_processes else None
    seen, recheck_at_s = _observe(snapshot, before, now_s, processes, wait_s, rules.withdrawal_grace_s)
    forwards: dict[ForwardKey, WantedForward] = {}
    notices: dict[ForwardKey, UnforwardedPort] = {}
    overflow = undecided = considered = 0

    candidates: dict[ForwardKey, tuple[Source, PortSpec | None]] = {}
    for spec in rules.manual:
        candidates[spec.key] = ("manual", spec)
    for spec in rules.declared:
        source, asked = candidates.setdefault(spec.key, ("declared", spec))
        if spec.host_port is not None and asked is not None and asked.host_port is None:
            candidates[spec.key] = (source, spec)  # a SPEC without a host port changes none that a file asks for
    if rules.auto and rules.ports_are_here is None:
        # In order of appearance: a port keeps its place below the limit when a lower number appears.
        for key in seen:
            if key.transport == "tcp" or key.container_port < EPHEMERAL_UDP:
                candidates.setdefault(key, ("detected", None))

    for key, (source, asked) in candidates.items():
        here = seen.get(key.ordinary)
        is_open = here is not None and here.decide_at_s is not None
        if key in rules.stopped:
            continue
        if is_open and source == "detected":
            undecided += 1
            continue
        if source == "detected" and len(forwards) + undecided >= rules.max_forwards:
            # It is not forwarded in any case; of thousands not each gets a reason.
            considered += 1
            if len(notices) >= rules.max_forwards or considered > MAX_CONSIDERED_FACTOR * rules.max_forwards:
                overflow += 1
                continue
        process = here.process if here else None
        attributes = rules.attributes.resolve(key, process.command_line if process else None)
        notice = _refusal(rules, key, source, asked, here, attributes)
        if notice is not None and len(notices) < rules.max_forwards:
            notices[key] = notice
        elif notice is not None or len(forwards) + undecided >= rules.max_forwards:
            overflow += 1
        else:
            pin = _pin(rules, key, asked)
            refused = _refused_pin(rules, key, asked) or _refused_elevation(rules, key, process, pin)
            wanted = _wanted_forward(key, source, None if refused else pin, None if is_open else here, attributes)
            holds_s = 0.0 if wanted.serving else rules.wait_for_server_s
            held = f"new connections wait up to {holds_s:g} s for its server first" if holds_s else None
            notes = (refused, _note(rules, key, here), held)
            forwards[key] = replace(wanted, note="; ".join(note for note in notes if note) or None, holds_s=holds_s)
    came_back = frozenset(
        key
        for key, last in before.items()
        if (last.gone_at_s is not None or last.returning) and key in seen and seen[key].gone_at_s is None
    )
    return Plan(forwards, notices, seen, overflow, recheck_at_s, _summary(rules, overflow), undecided, came_back)


def _summary(rules: SessionRules, overflow: int) -> Summary | None:
    if overflow:
        limit = rules.max_forwards
        return Summary(
            f"there are more ports than the limit of {limit}: the rest is not forwarded",
            f"{overflow} more ports are not forwarded: the limit is {limit}",
        )
    return Summary(rules.ports_are_here, rules.ports_are_here) if rules.auto and rules.ports_are_here else None


def _observe(
    snapshot: Snapshot,
    before: Mapping[ForwardKey, ObservedPort],
    now_s: float,
    processes: Mapping[ForwardKey, ServerProcess | None],
    wait_s: float | None,
    grace_s: float,
) -> tuple[dict[ForwardKey, ObservedPort], float | None]:
    """What listens now, or vanished so recently that it still counts; and when to check again without a new snapshot.

    `wait_s`: how long to wait for a new port's process; `grace_s`: how long a vanished port counts. A server that replaced
    another counts as that one until its process is known: servers restart.
    """
    addresses: dict[ForwardKey, set[str]] = {}
    for listener in snapshot:
        key = ForwardKey(listener.transport, None, listener.container_port)
        addresses.setdefault(key, set()).add(listener.address)
    seen: dict[ForwardKey, ObservedPort] = {}
    times_s: list[float] = []
    # Earlier ones in their order, then new ones by number (a snapshot is sorted).
    for key in dict.fromkeys((*before, *addresses)):
        last, found = before.get(key), addresses.get(key)
        if last is not None and found is None:
            gone_at_s = now_s if last.gone_at_s is None else last.gone_at_s
            expires_at_s = gone_at_s + grace_s
            # A port that vanished before its decision never existed.
            if now_s < expires_at_s and last.decide_at_s is None:
                seen[key] = ObservedPort(last.addresses, gone_at_s, last.returning, last.process)
                times_s.append(expires_at_s)
            continue
        process, decide_at_s = processes.get(key), None
        if key not in processes and last is not None:
            process, decide_at_s = last.process, last.decide_at_s
        elif key not in processes and wait_s is not None:
            decide_at_s = now_s + wait_s
        elif wait_s is not None and process is not None and may_be_brief(key, process.command_line, found or ()):
            is_known = last is not None and last.process == process
            decide_at_s = last.decide_at_s if last is not None and is_known else now_s + BRIEF_S
        if decide_at_s is not None and decide_at_s <= now_s:
            decide_at_s = None
        seen[key] = ObservedPort(frozenset(found or ()), process=process, decide_at_s=decide_at_s)
        times_s += [] if decide_at_s is None else [decide_at_s]
    return seen, min(times_s, default=None)


def _refusal(
    rules: SessionRules,
    key: ForwardKey,
    source: Source,
    spec: PortSpec | None,
    seen: ObservedPort | None,
    attributes: PortAttributes,
) -> UnforwardedPort | None:
    """Why this port is not forwarded, or None."""

    def notice(
        status: Literal["published", "ignored", "failed"], reason: str, at: PublishedPort | None = None
    ) -> UnforwardedPort:
        host_ip, host_port = (at.host_ip, at.host_port) if at else (None, None)
        return UnforwardedPort(key, status, reason, source, attributes, host_ip, host_port, _shown(seen))

    if key.container_host is None and rules.ports_are_here:
        return notice("ignored", rules.ports_are_here)
    command_line = seen.process.command_line if seen is not None and seen.process is not None else None
    excluded, included, firm = (
        chosen.has(key.container_port, command_line) for chosen in (rules.exclude, rules.include, rules.firm)
    )
    included = included and (rules.include_is_own or not firm)
    if source == "detected" and excluded and not included:
        return notice("ignored", "excluded")
    if source == "declared" and firm and not included and not (spec is not None and spec.is_own):
        return notice("ignored", "excluded by you")
    if source == "detected" and not (included and rules.include_known) and not rules.attributes.names(key):
        known = exclusion_reason(key, command_line, by_default=rules.default_exclude)
        if known is not None:
            return notice("ignored", f"{known}: not forwarded automatically")
    if source == "detected" and key.transport == "udp" and not rules.auto_udp:
        return notice("ignored", "UDP is forwarded when it is asked for, or with --auto-udp")
    if source == "detected" and attributes.on_auto_forward == "ignore":
        return notice("ignored", "onAutoForward is ignore")
    if source != "manual" and (elsewhere := _elsewhere(rules, key, seen)) is not None:
        return notice("ignored", elsewhere)
    if source != "manual" and (published := _published(rules, key, spec, seen, attributes)) is not None:
        return notice("published", f"published by the engine on {published.host_ip}:{published.host_port}", published)
    if rules.blocked is not None:
        return notice("failed", rules.blocked)
    if key.transport == "udp" and not rules.udp:
        return notice("failed", "UDP needs the agent lane, which is not available")
    if attributes.require_local_port and (refused := _refused_pin(rules, key, spec)) is not None:
        return notice("failed", refused)
    return None


def _published(
    rules: SessionRules,
    key: ForwardKey,
    spec: PortSpec | None,
    seen: ObservedPort | None,
    attributes: PortAttributes,
) -> PublishedPort | None:
    """Where the engine publishes this port, if that reaches its server under the wanted number."""
    there = () if _is_on_loopback(seen) else _publications(rules, key)
    pin = None if _refused_pin(rules, key, spec) else _pin(rules, key, spec)
    wanted = pin or (key.container_port if attributes.require_local_port else None)
    return next((port for port in there if wanted is None or (port.host_port == wanted and _is_here(port))), None)


def _publications(rules: SessionRules, key: ForwardKey) -> tuple[PublishedPort, ...]:
    if key.container_host is not None:
        return ()
    asked = (key.transport, key.container_port)
    return tuple(port for port in rules.published if (port.transport, port.container_port) == asked)


def _is_here(port: PublishedPort) -> bool:
    """Whether `localhost` reaches a port published on that address."""
    return port.host_ip in WILDCARDS or is_loopback(port.host_ip)


def _is_on_loopback(seen: ObservedPort | None) -> bool:
    return seen is not None and all(map(is_loopback, seen.addresses))


def _elsewhere(rules: SessionRules, key: ForwardKey, seen: ObservedPort | None) -> str | None:
    """Why another container's session forwards this port; None if it does not, or does not reach it."""
    elsewhere = rules.elsewhere.get(key)
    if elsewhere is None or (elsewhere.from_beside and _is_on_loopback(seen)):
        return None
    if elsewhere.from_beside:
        return f"forwarded by the session of {elsewhere.container_name}, whose configuration names it"
    return f"forwarded by the session of {elsewhere.container_name}, which is on the same network namespace"


def _pin(rules: SessionRules, key: ForwardKey, spec: PortSpec | None) -> int | None:
    """The required host port: the SPEC's, else that of `localPorts` (own ports only)."""
    if spec is not None and spec.host_port is not None:
        return spec.host_port
    return host_port_for(rules.local_ports, key.container_port) if key.container_host is None else None


def _refused_pin(rules: SessionRules, key: ForwardKey, spec: PortSpec | None) -> str | None:
    """Why the pin does not count: a system port that the user has not granted; else None.

    An unavailable port is left to the bind, which reports it.
    """
    pin = _pin(rules, key, spec)
    if pin is None or not rules.lowest_port <= pin < FIRST_UNPRIVILEGED:
        return None
    if spec is not None and spec.host_port is not None and spec in rules.manual:
        return None
    for one in rules.low_ports:
        if one.low <= key.container_port <= one.high and one.host_low + key.container_port - one.low == pin:
            return None
    return f"host port {pin} is not granted to it: {rules.way_out}"


def _refused_elevation(
    rules: SessionRules, key: ForwardKey, process: ServerProcess | None, pin: int | None
) -> str | None:
    """Why a port does not get its own number below 1024 although its attributes ask for it; else None."""
    if pin is not None or not rules.asked_low or not rules.lowest_port <= key.container_port < FIRST_UNPRIVILEGED:
        return None
    command_line = process.command_line if process else None
    if any(rule.key in rules.asked_low and rule.matches(key, command_line) for rule in rules.attributes.rules):
        return f"host port {key.container_port} is not granted to it: {rules.way_out}"
    return None


def _wanted_forward(
    key: ForwardKey, source: Source, pinned_host_port: int | None, seen: ObservedPort | None, attributes: PortAttributes
) -> WantedForward:
    from_ipv6: tuple[DialAddress, ...] = ()
    if key.container_host is not None:
        dials: tuple[DialAddress, ...] = (DialAddress(key.container_host, key.container_port),)
        serving = True
    else:
        # Not seen yet: a dev container's server is most likely on loopback of either family.
        dials = dial_addresses(seen.addresses if seen else WILDCARDS, key.container_port)
        if seen is not None:
            from_ipv6 = dial_addresses(seen.addresses, key.container_port, from_ipv6=True)
        # A datagram cannot be refused, so a UDP port is served with or without a server.
        serving = seen is not None or key.transport == "udp"
    others = from_ipv6 if from_ipv6 != dials else ()
    return WantedForward(
        key, dials, source, attributes, pinned_host_port, serving, _shown(seen), dials_from_ipv6=others
    )


def _note(rules: SessionRules, key: ForwardKey, seen: ObservedPort | None) -> str | None:
    published = next(iter(_publications(rules, key)), None)
    if published is None or not _is_on_loopback(seen):
        return None
    where = f"{published.host_ip}:{published.host_port}"
    return f"published by the engine on {where}, which does not reach a server on loopback"


def _shown(seen: ObservedPort | None) -> str | None:
    return seen.process.shown if seen is not None and seen.process is not None else None

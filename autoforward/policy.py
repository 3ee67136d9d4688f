"""What should be forwarded now: a pure function of what the user asked for, what listens, and the time.

Level-triggered: each call looks at a complete snapshot and says the whole wanted state; what was missed before is made
good by the next call. `reconcile` then compares that with what there is and says the steps, without taking any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoforward.attributes import NO_RULES, AttributeRules
from autoforward.model import (
    FIRST_UNPRIVILEGED,
    DialAddress,
    ForwardKey,
    PortAttributes,
    PortSpec,
    PublishedPort,
    ServerProcess,
    Snapshot,
    Source,
    Status,
)
from autoforward.procnet import dial_addresses
from autoforward.setting_values import NOTHING, LocalPorts, Selection, host_port_for

WITHDRAWAL_GRACE_S = 1.5
"""A server that restarts under a file watcher is back within this; its port stays."""

PROCESS_WAIT_S = 0.2
"""Where attributes depend on whose a port is, a new one is not forwarded before that is known, or this has passed: else one
that is to be ignored would be forwarded for a moment. Usually it is known with the snapshot."""

MAX_FORWARDS = 128
"""Forwards of one session, and ports that it shows without forwarding them: a container must not be able to take every
port of the host, nor to fill the list and the log of events."""

EPHEMERAL_UDP = 32_768
"""From here on a bound UDP socket is most likely a client's (a resolver waiting for its answer), not a server's."""


WILDCARDS = ("0.0.0.0", "::")

NOBODY_KNOWN: Mapping[ForwardKey, ServerProcess | None] = {}

NoticeStatus = Literal["published", "ignored", "failed"]


@dataclass(frozen=True, slots=True)
class SessionRules:
    """Everything but the snapshot and the time that decides about one session's ports.

    `blocked` is why nothing can be relayed (no lane), None when it can. `udp` says whether the lane carries datagrams.
    """

    auto: bool = True
    declared: tuple[PortSpec, ...] = ()
    manual: tuple[PortSpec, ...] = ()
    attributes: AttributeRules = NO_RULES
    exclude: Selection = NOTHING
    include: Selection = NOTHING
    local_ports: tuple[LocalPorts, ...] = ()
    published: tuple[PublishedPort, ...] = ()
    host_network: bool = False
    stopped: frozenset[ForwardKey] = frozenset()
    blocked: str | None = None
    udp: bool = False
    auto_udp: bool = False
    max_forwards: int = MAX_FORWARDS

    @property
    def look_at_processes(self) -> bool:
        """Whether it can matter whose a port is."""
        return self.attributes.look_at_processes or bool(self.exclude.processes)


@dataclass(frozen=True, slots=True)
class Seen:
    """A port that listens or did a moment ago: the addresses, and when (monotonic seconds) it was found to be gone.

    None while it listens: snapshots come only when something has changed, so the last one may be hours old. `process` is
    whose it is, as far as that is known. Until `decide_at_s` nothing is decided about it.
    """

    addresses: frozenset[str]
    gone_at_s: float | None = None
    returning: bool = False
    """Its container was away, and it has not been seen since."""
    process: ServerProcess | None = None
    decide_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """One forward that should be. `serving` False: hold the host port, but refuse connections (`waiting`)."""

    key: ForwardKey
    dials: tuple[DialAddress, ...]
    source: Source
    attributes: PortAttributes
    pinned_host_port: int | None
    serving: bool
    process: str | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A port that is not forwarded, and why. `host_ip`/`host_port` say where it is reachable all the same."""

    key: ForwardKey
    status: NoticeStatus
    reason: str
    source: Source
    attributes: PortAttributes
    host_ip: str | None = None
    host_port: int | None = None
    process: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The wanted state, less `overflow` ports beyond the limit. `recheck_at_s`: when time alone changes the plan."""

    wishes: Mapping[ForwardKey, Wish]
    notices: Mapping[ForwardKey, Notice]
    seen: Mapping[ForwardKey, Seen]
    overflow: int = 0
    recheck_at_s: float | None = None

    @property
    def returning(self) -> frozenset[ForwardKey]:
        """Ports whose servers may be on their way back: connections wait for them."""
        return frozenset(key for key, seen in self.seen.items() if seen.returning)


def plan(
    rules: SessionRules,
    snapshot: Snapshot,
    before: Mapping[ForwardKey, Seen],
    now_s: float,
    processes: Mapping[ForwardKey, ServerProcess | None] = NOBODY_KNOWN,
) -> Plan:
    """The wanted state. `before` is the `seen` of the last plan (of this container: the grace comes from it).

    `processes` has whose the ports are: None where that is not to be found, nothing where it may still come.
    """
    wait_s = PROCESS_WAIT_S if rules.look_at_processes else None
    seen, recheck_at_s = _observe(snapshot, before, now_s, processes, wait_s)
    wishes: dict[ForwardKey, Wish] = {}
    notices: dict[ForwardKey, Notice] = {}
    overflow = 0

    candidates: dict[ForwardKey, tuple[Source, PortSpec | None]] = {}
    for declared in rules.manual:
        candidates[declared.key] = ("manual", declared)
    for declared in rules.declared:
        candidates.setdefault(declared.key, ("declared", declared))
    if rules.auto:
        for key in sorted(seen, key=lambda key: (key.container_port, key.transport)):
            if key.transport == "tcp" or key.container_port < EPHEMERAL_UDP:
                candidates.setdefault(key, ("detected", None))

    for key, (source, spec) in candidates.items():
        here = seen.get(key)
        undecided = here is not None and here.decide_at_s is not None
        if key in rules.stopped or (undecided and source == "detected"):
            continue
        process = here.process if here else None
        attributes = rules.attributes.resolve(key, process.command_line if process else None)
        notice = _why_not(rules, key, source, here, attributes)
        if notice is not None and len(notices) < rules.max_forwards:
            notices[key] = notice
        elif notice is not None or len(wishes) >= rules.max_forwards:
            overflow += 1
        else:
            wishes[key] = _wish(key, source, _pin(rules, key, spec), None if undecided else here, attributes)
    return Plan(wishes, notices, seen, overflow, recheck_at_s)


def _observe(
    snapshot: Snapshot,
    before: Mapping[ForwardKey, Seen],
    now_s: float,
    processes: Mapping[ForwardKey, ServerProcess | None],
    wait_s: float | None,
) -> tuple[dict[ForwardKey, Seen], float | None]:
    """What listens now, and what vanished so recently that it still counts; when to look again without news.

    `wait_s` is how long a new port's process is waited for. A server that took the place of another is taken for that one
    until it is known: servers restart.
    """
    addresses: dict[ForwardKey, set[str]] = {}
    for listener in snapshot:
        key = ForwardKey(listener.transport, None, listener.container_port)
        addresses.setdefault(key, set()).add(listener.address)
    seen: dict[ForwardKey, Seen] = {}
    times_s: list[float] = []
    for key, found in addresses.items():
        last = before.get(key)
        process, decide_at_s = processes.get(key), None
        if key not in processes and last is not None:
            process, decide_at_s = last.process, last.decide_at_s
        elif key not in processes and wait_s is not None:
            decide_at_s = now_s + wait_s
        if decide_at_s is not None and decide_at_s <= now_s:
            decide_at_s = None
        seen[key] = Seen(frozenset(found), process=process, decide_at_s=decide_at_s)
        times_s += [] if decide_at_s is None else [decide_at_s]
    for key, last in before.items():
        gone_at_s = now_s if last.gone_at_s is None else last.gone_at_s
        expires_at_s = gone_at_s + WITHDRAWAL_GRACE_S
        # What went before anything was decided about it was never there.
        if key not in seen and now_s < expires_at_s and last.decide_at_s is None:
            seen[key] = Seen(last.addresses, gone_at_s, last.returning, last.process)
            times_s.append(expires_at_s)
    return seen, min(times_s, default=None)


def _why_not(
    rules: SessionRules, key: ForwardKey, source: Source, seen: Seen | None, attributes: PortAttributes
) -> Notice | None:
    """The reason for which this port is not forwarded; None when it is."""

    def notice(
        status: Literal["published", "ignored", "failed"], reason: str, at: PublishedPort | None = None
    ) -> Notice:
        host_ip, host_port = (at.host_ip, at.host_port) if at else (None, None)
        return Notice(key, status, reason, source, attributes, host_ip, host_port, _shown(seen))

    if key.container_host is None and rules.host_network:
        return notice("ignored", "the container is on the host's network: its ports are on the host already")
    command_line = seen.process.command_line if seen is not None and seen.process is not None else None
    excluded, included = (chosen.has(key.container_port, command_line) for chosen in (rules.exclude, rules.include))
    if source == "detected" and excluded and not included:
        return notice("ignored", "excluded")
    if source == "detected" and key.transport == "udp" and not rules.auto_udp:
        return notice("ignored", "UDP is forwarded when it is asked for, or with --auto-udp")
    if source != "manual" and attributes.on_auto_forward == "ignore":
        return notice("ignored", "onAutoForward is ignore")
    if source != "manual" and (published := _published(rules, key, seen)) is not None:
        return notice("published", f"published by the engine on {published.host_ip}:{published.host_port}", published)
    if rules.blocked is not None:
        return notice("failed", rules.blocked)
    if key.transport == "udp" and not rules.udp:
        return notice("failed", "UDP needs the agent lane, which is not available")
    return None


def _published(rules: SessionRules, key: ForwardKey, seen: Seen | None) -> PublishedPort | None:
    """Where the engine publishes this port, if its server can be reached there: not one that is on loopback only."""
    if key.container_host is not None:
        return None
    if seen is not None and all(address == "::1" or address.startswith("127.") for address in seen.addresses):
        return None
    for port in rules.published:
        if (port.transport, port.container_port) == (key.transport, key.container_port):
            return port
    return None


def _pin(rules: SessionRules, key: ForwardKey, spec: PortSpec | None) -> int | None:
    """The host port that it must be: the SPEC's, else that of `localPorts` (of the container's own ports)."""
    if spec is not None and spec.host_port is not None:
        return spec.host_port
    return host_port_for(rules.local_ports, key.container_port) if key.container_host is None else None


def _wish(
    key: ForwardKey, source: Source, pinned_host_port: int | None, seen: Seen | None, attributes: PortAttributes
) -> Wish:
    if key.container_host is not None:
        dials: tuple[DialAddress, ...] = (DialAddress(key.container_host, key.container_port),)
        serving = True
    else:
        # Not seen yet: loopback of either family is where a server of a dev container will most likely be.
        dials = dial_addresses(seen.addresses if seen else WILDCARDS, key.container_port)
        # There is no refusing a datagram, so a UDP port is served whether or not somebody is there.
        serving = seen is not None or key.transport == "udp"
    return Wish(key, dials, source, attributes, pinned_host_port, serving, _shown(seen))


def _shown(seen: Seen | None) -> str | None:
    return seen.process.shown if seen is not None and seen.process is not None else None


# What there is, and the steps from there to the plan.


@dataclass(frozen=True, slots=True)
class Existing:
    """A forward as it stands, as far as the steps depend on it."""

    wish: Wish
    status: Status | None
    host_ip: str | None
    host_port: int | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """In this order: close, then withdraw, serve and update what stays, then open."""

    close: tuple[ForwardKey, ...] = ()
    withdraw: tuple[Wish, ...] = ()
    serve: tuple[Wish, ...] = ()
    update: tuple[Wish, ...] = ()
    open: tuple[Wish, ...] = ()
    notices: tuple[Notice, ...] = field(default=())
    dropped_notices: tuple[ForwardKey, ...] = ()


def _claim(wish: Wish) -> tuple[object, ...]:
    """What decides about a host socket, and about how it is served."""
    attributes = wish.attributes
    return wish.pinned_host_port, attributes.require_local_port, attributes.elevate_if_needed, wish.dials, wish.serving


def _needs_another_number(have: Existing, wish: Wish) -> bool:
    """Whether the host port that it has is not, or may not be, the one that it would be given now."""
    if have.status == "failed":
        return _claim(wish) != _claim(have.wish)
    if wish.pinned_host_port != have.wish.pinned_host_port:
        return True
    if wish.pinned_host_port is not None or have.host_port is None:
        return False
    same, attributes = wish.key.container_port, wish.attributes
    if attributes.require_local_port and have.host_port != same:
        return True
    if bool(attributes.elevate_if_needed) == bool(have.wish.attributes.elevate_if_needed):
        return False
    # Another number than its own may be better now; a privileged one is not allowed any more.
    return have.host_port != same < FIRST_UNPRIVILEGED or have.host_port < FIRST_UNPRIVILEGED


def reconcile(
    existing: Mapping[ForwardKey, Existing], noticed: Mapping[ForwardKey, Notice], wanted: Plan, host_ip: str
) -> Steps:
    """The steps from what there is to the plan. What needs another host socket is a close and an open."""
    close, withdraw, serve, update, opens = [], [], [], [], []
    for key, have in existing.items():
        wish = wanted.wishes.get(key)
        if wish is None or have.host_ip not in (None, host_ip) or _needs_another_number(have, wish):
            close.append(key)
        elif wish.serving and have.status == "waiting":
            serve.append(wish)
        elif not wish.serving and have.status == "active":
            withdraw.append(wish)
        elif wish != have.wish:
            update.append(wish)
    gone = set(close)
    opens = [wish for key, wish in wanted.wishes.items() if key not in existing or key in gone]
    return Steps(
        close=tuple(close),
        withdraw=tuple(withdraw),
        serve=tuple(serve),
        update=tuple(update),
        open=tuple(opens),
        notices=tuple(notice for key, notice in wanted.notices.items() if noticed.get(key) != notice),
        dropped_notices=tuple(key for key in noticed if key not in wanted.notices),
    )

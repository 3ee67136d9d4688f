"""The inputs of a session's plan: its record, container and lane, and the ports of other sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from autoforward.config.session_record import SessionRecord
from autoforward.core.identity.network_namespace import own_namespace
from autoforward.core.model import ON_THE_HOST, ContainerInfo, ForwardKey, PortSpec, Snapshot
from autoforward.core.setting_values import PortFilter
from autoforward.forwards.plan import ON_OUR_NETWORK, SessionRules
from autoforward.forwards.port_claims import NOWHERE_ELSE, ClaimedBy, PortClaims
from autoforward.lanes.relay_tools import RelayTool
from autoforward.net.bound_pair import lowest_bindable_port
from autoforward.trust.widening import spelled_out


def rules_of(
    record: SessionRecord,
    info: ContainerInfo | None,
    manual: tuple[PortSpec, ...],
    stopped: Set[ForwardKey],
    tool: RelayTool | None,
    problem: str | None,
    elsewhere: Mapping[ForwardKey, ClaimedBy],
    network: bytes = b"",
) -> SessionRules:
    """Everything but the snapshot and the time. `problem`: why there is no `tool`; `network`: the container's namespace."""
    options = record.options
    asked = {request.value for request in record.requests if request.key == "elevateIfNeeded"}
    return SessionRules(
        auto=record.attached and options.auto,
        declared=record.declared if record.attached else (),
        manual=manual,
        attributes=record.rules,
        exclude=PortFilter(options.exclude, options.exclude_processes),
        include=PortFilter(options.include, options.include_processes),
        firm=PortFilter(options.firm, options.firm_processes),
        include_known=options.include_known,
        include_is_own=options.include_is_own,
        local_ports=options.local_ports,
        low_ports=options.low_ports,
        asked_low=frozenset(rule.key for rule in record.rules.rules if spelled_out(rule.key) in asked),
        lowest_port=lowest_bindable_port() or 1,
        way_out=record.way_out,
        published=info.published if info else (),
        ports_are_here=_why_ports_are_here(info, network),
        stopped=frozenset(stopped),
        blocked=None if tool is not None else problem,
        udp=tool is not None and tool.capabilities.udp,
        auto_udp=options.auto_udp,
        max_forwards=options.max_ports,
        default_exclude=options.default_exclude,
        elsewhere=elsewhere,
        wait_for_server_s=options.wait_for_server_s,
    )


def _why_ports_are_here(info: ContainerInfo | None, network: bytes) -> str | None:
    if info is not None and info.network_mode == "host":
        return ON_THE_HOST
    return ON_OUR_NETWORK if network and network == own_namespace() else None


class SessionClaims:
    """A session's port claims, in terms of its record. `replan` is called when others' claims change."""

    def __init__(self, neighbours: PortClaims, replan: Callable[[], None]) -> None:
        self._neighbours = neighbours
        self._part = neighbours.enter(replan)
        self._elsewhere: Mapping[ForwardKey, ClaimedBy] = NOWHERE_ELSE
        self._network = b""

    def join(self, record: SessionRecord, info: ContainerInfo, network: bytes | None = None) -> None:
        """Set the session's container and its network namespace; None: not known yet, perhaps the former one.

        Containers share a namespace only if both the engine and they themselves say so: one that uses another's network
        stays in the old namespace when that one restarts, and its own report alone could give it another's ports.
        """
        if network is not None:
            self._network = network
        engine = record.endpoint.host
        project = f"{engine}|{record.project}|{info.project_folder}" if record.project else None
        namespace = f"{engine}|{info.namespace}|{self._network.decode('ascii', 'replace')}"
        self._neighbours.join(self._part, info.name, namespace, project, record.service, record.declared_here)

    def leave(self) -> None:
        self._neighbours.leave(self._part)

    def consult(
        self, record: SessionRecord, snapshot: Snapshot, seen: Iterable[ForwardKey], *, can_relay: bool
    ) -> Mapping[ForwardKey, ClaimedBy]:
        """Before each plan: which of the container's own ports another session has. `seen`: of the last plan.

        A session that cannot relay, without a lane, leaves them all to others.
        """
        listening = {ForwardKey(listener.transport, None, listener.container_port) for listener in snapshot}
        takes_part = record.attached and can_relay
        own = listening.union(seen) if takes_part and record.options.auto else None
        declared = record.declared_here if takes_part else ()
        self._elsewhere = self._neighbours.consult(self._part, own, declared)
        return self._elsewhere

    def settle(self, record: SessionRecord, seen: Iterable[ForwardKey]) -> None:
        """The plan was applied: release what it does not use."""
        own = list(seen) if record.attached and record.options.auto else []
        own += [spec.key for spec in record.declared_here if spec.container_host is None]
        self._neighbours.settle(self._part, own, self._elsewhere)

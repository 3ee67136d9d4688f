"""Port claims between sessions: each server is forwarded once, by one session, even if several containers reach it.

Sessions compete in two ways: containers may share a network namespace (`network_mode: service:x`), and a session may
forward a service beside it (`db:5432`) that has its own session. A *spot* is a port of one namespace. The holder of a
spot keeps it until it releases it, which it does for a session that declared the port or is older. Single-threaded,
nothing waits; `replan` makes a session ask again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

from autoforward.core.model import ForwardKey, PortSpec, Transport

PortKey = tuple[str, Transport, int]
"""Namespace, transport, port."""

Rank = tuple[bool, int]
"""Whether it is only detected, and the session's number: the lowest wins."""


@dataclass(frozen=True, slots=True)
class ClaimedBy:
    """The session that forwards this port. `from_beside`: over the network, so that a server on loopback is not reached."""

    container_name: str
    from_beside: bool = False


LAST = 1 << 62
"""Ranks behind every session: the port is not wanted."""

NOWHERE_ELSE: Mapping[ForwardKey, ClaimedBy] = {}


@dataclass(slots=True, eq=False)
class PortClaim:
    """One session's claim. `number` is its age rank; `beside`: the services that it forwards over the network.

    With `takes_all` it wants every port of its namespace, seen or not.
    """

    number: int
    replan: Callable[[], None]
    name: str = ""
    namespace: str = ""
    project: str | None = None
    service: str | None = None
    takes_all: bool = False
    wants: dict[PortKey, Rank] = field(default_factory=dict)
    beside: set[tuple[str, Transport, int]] = field(default_factory=set)

    def rank_at(self, spot: PortKey) -> Rank:
        return self.wants.get(spot) or (True, self.number if self.takes_all else LAST)


class PortClaims:
    """All watching sessions. `enter` adds a claim; `join`, then `consult` and `settle` for each plan."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._members: list[PortClaim] = []
        self._holders: dict[PortKey, PortClaim] = {}

    def enter(self, replan: Callable[[], None]) -> PortClaim:
        """A claim for a session, in the order in which sessions begin."""
        return PortClaim(next(self._numbers), replan)

    def join(
        self,
        one: PortClaim,
        name: str,
        namespace: str,
        project: str | None,
        service: str | None,
        declared: Iterable[PortSpec] = (),
    ) -> None:
        """Set the claim's container. `namespace` and `project` include the engine: those of two engines differ.

        `declared` ports of services beside it count from now on, even before it can forward them: else those services'
        own sessions would take these ports, and their host ports, meanwhile.
        """
        if one.namespace != namespace:
            self.leave(one)
        one.name, one.namespace, one.project, one.service = name, namespace, project, service
        if one not in self._members:
            self._members.append(one)
            one.beside = _beside(declared)
            services = {name for name, _transport, _port in one.beside}
            self._wake(self._of_services(project, services | {service}, but=one))

    def leave(self, one: PortClaim) -> None:
        """It forwards nothing any more. Idempotent."""
        if one not in self._members:
            return
        self._members.remove(one)
        one.wants, one.takes_all = {}, False
        services = {service for service, _transport, _port in one.beside} | {one.service}
        one.beside = set()
        self._release(one, list(self._holders))
        self._wake(self._of_services(one.project, services))

    def consult(
        self, one: PortClaim, own: Iterable[ForwardKey] | None, declared: Iterable[PortSpec]
    ) -> Mapping[ForwardKey, ClaimedBy]:
        """Which of its own ports another session has; it holds the others from now on. Call `settle` next.

        `own`: the ports that it sees; None: it takes declared ones only.
        """
        one.takes_all = own is not None
        ranks: dict[ForwardKey, Rank] = dict.fromkeys(own or (), (True, one.number))
        declared = tuple(declared)
        ranks |= {spec.key: (False, one.number) for spec in declared if spec.container_host is None}
        beside = _beside(declared)
        if beside != one.beside:
            changed = {service for service, _transport, _port in beside ^ one.beside}
            one.beside = beside
            self._wake(self._of_services(one.project, changed, but=one))
        one.wants = {(one.namespace, key.transport, key.container_port): rank for key, rank in ranks.items()}
        sharing = [other for other in self._members if other is not one and other.namespace == one.namespace]
        if not sharing and not self._is_served_from_beside(one):
            self._holders.update(dict.fromkeys(one.wants, one))
            return NOWHERE_ELSE
        found = {}
        for key in ranks:
            elsewhere = self._elsewhere(one, sharing, (one.namespace, key.transport, key.container_port))
            if elsewhere is not None:
                found[key] = elsewhere
        return found

    def settle(self, one: PortClaim, own: Iterable[ForwardKey], elsewhere: Mapping[ForwardKey, ClaimedBy]) -> None:
        """The plan was applied: of these ports it has all except those elsewhere."""
        kept = {
            (one.namespace, key.transport, key.container_port)
            for key in own
            if not elsewhere or key not in elsewhere or elsewhere[key].from_beside
        }
        self._release(one, [spot for spot, holder in self._holders.items() if holder is one and spot not in kept])

    def _elsewhere(self, one: PortClaim, sharing: list[PortClaim], spot: PortKey) -> ClaimedBy | None:
        key = (one.service, spot[1], spot[2])
        for other in self._who_forwards_beside(one.project):
            if other is not one and key in other.beside and self._is_alone(one):
                return ClaimedBy(other.name, from_beside=True)
        best = min((*sharing, one), key=lambda member: member.rank_at(spot))
        holder = self._holders.get(spot, best)
        if holder is one and best is one:
            self._holders[spot] = one
            return None
        if holder is not one and best is one:
            holder.replan()
        return ClaimedBy((best if holder is one else holder).name)

    def _release(self, one: PortClaim, spots: Iterable[PortKey]) -> None:
        waiting: dict[int, PortClaim] = {}
        for spot in spots:
            if self._holders.get(spot) is one:
                del self._holders[spot]
                waiting |= {other.number: other for other in self._members if other is not one and spot in other.wants}
        self._wake(waiting.values())

    def _is_served_from_beside(self, one: PortClaim) -> bool:
        return any(
            service == one.service
            for other in self._who_forwards_beside(one.project)
            if other is not one
            for service, _transport, _port in other.beside
        )

    def _is_alone(self, one: PortClaim) -> bool:
        """With several instances of a service its name is ambiguous."""
        return sum((other.project, other.service) == (one.project, one.service) for other in self._members) == 1

    def _who_forwards_beside(self, project: str | None) -> list[PortClaim]:
        return [other for other in self._members if project is not None and other.project == project and other.beside]

    def _of_services(
        self, project: str | None, services: Set[str | None], but: PortClaim | None = None
    ) -> list[PortClaim]:
        return [
            other
            for other in self._members
            if other is not but and project is not None and other.project == project and other.service in services
        ]

    @staticmethod
    def _wake(members: Iterable[PortClaim]) -> None:
        for member in list(members):
            member.replan()


def _beside(declared: Iterable[PortSpec]) -> set[tuple[str, Transport, int]]:
    return {
        (spec.container_host, spec.transport, spec.container_port)
        for spec in declared
        if spec.container_host is not None
    }

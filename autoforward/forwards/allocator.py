"""Allocate host ports: a bound socket for a forward, or the reason for a failure.

The bind is both test and reservation: candidates are tried in order inside one registry transaction, and a bound port
is written as a lease before anyone else can read. `plan_candidates` decides, `Allocator` acts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from autoforward.core.model import FIRST_UNPRIVILEGED, ForwardKey, Identity, Source, Transport
from autoforward.forwards.candidates import AllocationFailure, plan_candidates
from autoforward.net.bound_pair import (
    DEFAULT_BACKLOG,
    BoundPair,
    HostPortDeniedError,
    HostPortError,
    HostPortTakenError,
    bind_pair,
    lowest_bindable_port,
    owners_of_ports,
    start_listening,
)
from autoforward.state.buffered_registry import BufferedRegistry
from autoforward.state.document import (
    ADDITIONAL_KEY,
    HELD_KEY,
    SETTLED_S,
    SINCE_KEY,
    Lease,
    ProcessIdentity,
    RegistryDocument,
    Session,
    format_time,
)

# A bind takes about 10 µs and a transaction keeps others out: refuse rather than try all 64,512 ports.
MAX_ATTEMPTS = 4096
# The lease's key for why it differs from the container's port.
REMAP_KEY = "remap_reason"
STAYS = "kept from before the supervisor's restart"
# Marks a lease whose port was pinned: a pin lasts as long as its SPEC or configuration.
PIN_KEY = "pinned"


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """Fields of the lease that decide nothing."""

    container_id: str
    workspace: str | None
    label: str | None
    service: str | None
    source: Source


@dataclass(frozen=True, slots=True)
class AllocationRequest:
    """One forward that needs a host port.

    `identity` is `str(model.Identity)`. `pinned_host_port` may not be remapped; `require_same`: the host port must
    equal the container's; `elevate` allows ports below 1024. `wanted`: ports that the container's other forwards want.
    `stays`: its server stayed up between two supervisors, so it keeps its lease's port. With `listen` the sockets
    accept, without it they are reserved and refuse.
    """

    identity: str
    key: ForwardKey
    host_ip: str
    row: LeaseRow
    pinned_host_port: int | None = None
    elevate: bool = False
    require_same: bool = False
    wanted: frozenset[int] = frozenset()
    stays: bool = False
    listen: bool = True


@dataclass(frozen=True, slots=True)
class Allocation:
    """A bound port; the caller owns `pair`.

    `remap_reason` is set if it is neither the container's nor the pinned port.
    """

    lease: Lease
    pair: BoundPair
    remap_reason: str | None


@dataclass(slots=True)
class _Attempt:
    """A request in progress; `why` is about the container's port, `taken_port` for its owner."""

    request: AllocationRequest
    result: Allocation | AllocationFailure | None = None
    why: str | None = None
    taken_port: int | None = None
    holder: str | None = None


@dataclass(slots=True)
class _Holders:
    """Known holders of ports: rows bound by live processes. One lookup per process."""

    document: RegistryDocument
    alive: dict[ProcessIdentity, bool]
    by_number: dict[tuple[str, int], Lease] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for lease in self.document.entries:
            if self.holds(lease):
                self.by_number[lease.transport, lease.host_port] = lease

    def holds(self, lease: Lease) -> bool:
        if lease.state != "bound":
            return False
        if lease.owner not in self.alive:
            self.alive[lease.owner] = lease.owner.is_alive()
        return self.alive[lease.owner]


class Allocator:
    """Leases and sockets for one process. Thread-safe; blocks on the registry's lock and the disk.

    `registry` keeps trouble with its file away from forwards.
    """

    def __init__(
        self,
        registry: BufferedRegistry,
        process: ProcessIdentity,
        *,
        backlog: int = DEFAULT_BACKLOG,
        owners: Callable[[Collection[int]], dict[int, str]] = owners_of_ports,
        lowest_port: Callable[[], int | None] = lowest_bindable_port,
    ) -> None:
        self._registry = registry
        self._process = process
        self._backlog = backlog
        self._owners = owners
        self._lowest_port = lowest_port

    def __repr__(self) -> str:
        return f"<Allocator pid {self._process.pid}, {self._registry!r}>"

    def allocate_many(self, requests: Sequence[AllocationRequest]) -> list[Allocation | AllocationFailure]:
        """One result per request, in order, in one transaction."""
        attempts = [_Attempt(request) for request in requests]
        try:
            self._registry.transact(lambda document, now: self._serve(document, now, attempts))
        except BaseException:
            for attempt in attempts:
                if isinstance(attempt.result, Allocation):
                    attempt.result.pair.close()
            raise
        return self._with_owners(attempts)

    def release(self, lease_ids: Collection[str]) -> None:
        """The forwards ended and their sockets are closed: reserve their leases. Idempotent."""

        def change(document: RegistryDocument, now: datetime) -> None:
            for lease_id in lease_ids:
                document.mark_reserved(lease_id, now)

        self._registry.transact(change)

    def better_numbers(self, requests: Sequence[AllocationRequest]) -> set[ForwardKey]:
        """Which of these, all bound on another port, would get their own now. Changes nothing."""
        better: set[ForwardKey] = set()

        def look(document: RegistryDocument, now: datetime) -> None:
            for request in requests:
                own = request.key.container_port
                found = document.find_leases(request.identity, request.key)
                lease = next((one for one in found if one.owner == self._process), None)
                may_have = (own >= FIRST_UNPRIVILEGED or request.elevate) and not _settled_elsewhere(
                    document, lease, now
                )
                if may_have and self.is_free(request.host_ip, own, request.key.transport):
                    better.add(request.key)

        self._registry.transact(look)
        return better

    def count_time(self) -> None:
        """Record how long this process's ports have been forwarded, once that settles them, so that a kill does not undo it."""

        def change(document: RegistryDocument, now: datetime) -> None:
            for lease in list(document.entries):
                is_held = lease.state == "bound" and lease.owner == self._process
                if is_held and lease.has_settled(now) and not lease.says_settled:
                    document.upsert(lease.counted(now))

        self._registry.transact(change)

    @staticmethod
    def is_free(host_ip: str, number: int, transport: Transport) -> bool:
        """Whether this port could be bound now."""
        try:
            bind_pair(host_ip, number, transport).close()
        except HostPortError:
            return False
        return True

    def update_rows(self, leases: Sequence[Lease]) -> None:
        """Write these rows again (after a change of label or container id); sets `updated`."""

        def change(document: RegistryDocument, now: datetime) -> None:
            for lease in leases:
                document.upsert(replace(lease, updated=format_time(now)))

        self._registry.transact(change)

    def _serve(self, document: RegistryDocument, now: datetime, attempts: Sequence[_Attempt]) -> None:
        for identity in {attempt.request.identity for attempt in attempts}:
            document.carry_over(identity)
        holders = _Holders(document, {self._process: True})
        # Requests with one possible port first, then those with a lease: no other forward of this batch gets it.
        for attempt in sorted(attempts, key=lambda item: _rank(item.request, document)):
            attempt.result = self._serve_one(document, holders, now, attempt)
            if isinstance(attempt.result, Allocation):
                lease = attempt.result.lease
                document.upsert(lease)
                holders.by_number[lease.transport, lease.host_port] = lease

    def _serve_one(
        self, document: RegistryDocument, holders: _Holders, now: datetime, attempt: _Attempt
    ) -> Allocation | AllocationFailure:
        request = attempt.request
        found = document.find_leases(request.identity, request.key)
        sticky = next((lease for lease in found if not holders.holds(lease)), None)
        same, transport = request.key.container_port, request.key.transport
        plan = plan_candidates(
            same,
            pinned_host_port=request.pinned_host_port,
            leased_host_port=None if sticky is None or sticky.extra.get(PIN_KEY) else sticky.host_port,
            yields_to=STAYS if request.stays else _settled_elsewhere(document, sticky, now),
            elevate=request.elevate,
            require_same=request.require_same,
            wanted=request.wanted - {same},
            taken={number for held, number in holders.by_number if held == transport},
            lowest_port=self._lowest_port() if same < FIRST_UNPRIVILEGED else None,
        )
        if plan.refusal is not None:
            return plan.refusal
        attempt.why = plan.not_same
        for number in itertools.islice(plan.candidates, MAX_ATTEMPTS):
            try:
                pair = self._bind(request, number)
            except (HostPortTakenError, HostPortDeniedError) as error:
                if number == same or plan.strict:
                    attempt.why = str(error)
                    if isinstance(error, HostPortTakenError):
                        attempt.taken_port = number
                        holder = holders.by_number.get((transport, number))
                        attempt.holder = None if holder is None else _describe_forward(holder)
                if plan.strict:
                    return AllocationFailure(str(error), error.hint or "stop what uses it, or choose another host port")
            except HostPortError as error:
                return AllocationFailure(str(error), error.hint)
            else:
                return self._allocation(document, request, sticky, pair, now, attempt)
        return AllocationFailure(f"no free host port for container port {same}", "stop some forwards")

    def _bind(self, request: AllocationRequest, number: int) -> BoundPair:
        pair = bind_pair(request.host_ip, number, request.key.transport)
        if request.listen:
            try:
                start_listening(pair, self._backlog)
            except BaseException:
                pair.close()
                raise
        return pair

    def _allocation(
        self,
        document: RegistryDocument,
        request: AllocationRequest,
        sticky: Lease | None,
        pair: BoundPair,
        now: datetime,
        attempt: _Attempt,
    ) -> Allocation:
        same, row = request.key.container_port, request.row
        extra: dict[str, Any] = {} if sticky is None else dict(sticky.extra)
        extra.pop(REMAP_KEY, None)
        extra.pop(PIN_KEY, None)
        held_s = sticky.held_s(now) if sticky is not None and sticky.host_port == pair.host_port else None
        extra.update({HELD_KEY: held_s or 0.0, SINCE_KEY: format_time(now)})
        if request.pinned_host_port is not None:
            extra[PIN_KEY] = True
        if request.key.pin is not None:
            extra[ADDITIONAL_KEY] = True
        reason = None
        if pair.host_port != same and request.pinned_host_port is None:
            reason = attempt.why
            if reason is not None:
                extra[REMAP_KEY] = reason
        lease = Lease(
            host_port=pair.host_port,
            container_id=row.container_id,
            container_port=same,
            workspace=row.workspace,
            pid=self._process.pid,
            label=row.label,
            id=document.new_lease_id() if sticky is None else sticky.id,
            host_ip=request.host_ip,
            transport=request.key.transport,
            service=row.service,
            container_host=request.key.container_host,
            source=row.source,
            state="bound",
            pid_started=self._process.started,
            updated=format_time(now),
            identity=request.identity,
            extra=extra,
        )
        return Allocation(lease, pair, reason)

    def _with_owners(self, attempts: Sequence[_Attempt]) -> list[Allocation | AllocationFailure]:
        """Find who holds the ports that were unavailable: after the transaction, because it is slow."""
        unknown = {item.taken_port for item in attempts if item.taken_port is not None and item.holder is None}
        owners = self._owners(unknown) if unknown else {}
        results: list[Allocation | AllocationFailure] = []
        for item in attempts:
            result = item.result
            if result is None:
                raise RuntimeError("a request was not served")
            owner = item.holder or (owners.get(item.taken_port) if item.taken_port is not None else None)
            if owner is not None:
                if isinstance(result, AllocationFailure):
                    result = replace(result, reason=f"{result.reason} by {owner}")
                elif result.remap_reason == item.why:
                    result = replace(result, remap_reason=f"{result.remap_reason} by {owner}")
            results.append(result)
        return results


def _rank(request: AllocationRequest, document: RegistryDocument) -> int:
    if request.pinned_host_port is not None or request.require_same:
        return 0
    return 1 if document.find_leases(request.identity, request.key) else 2


def _settled_elsewhere(document: RegistryDocument, lease: Lease | None, now: datetime) -> str | None:
    """Why a port that settled on another number stays there: another workspace settled on its own number, or declares
    it.

    None if it does not stay: the rule is in SPEC.md, "Allocation".
    """
    if lease is None or lease.host_port == lease.container_port:
        return None
    own = lease.container_port
    rivals = [
        other
        for other in document.entries
        if (other.transport, other.host_port) == (lease.transport, own) and other.identity != lease.identity
    ]
    for other in rivals:
        if _is_beside(other, lease) and other.was_used_within(SETTLED_S, now):
            return f"host port {own} belongs to {other.service or _place(other)}, in the same project"
    if not lease.has_settled(now):
        return None
    for other in rivals:
        if other.has_settled(now):
            return f"host port {own} belongs to {_place(other)}, and both have settled"
    for session in document.sessions:
        if _identity_of(session) != lease.identity and own in _declared_numbers(session, lease.transport):
            return f"host port {own} is declared by {session.get('workspace') or session.get('container_name')}"
    return None


def _is_beside(one: Lease, other: Lease) -> bool:
    """Whether both belong to one workspace or compose project: services attached together, in any order."""
    if one.workspace is not None or other.workspace is not None:
        return one.workspace == other.workspace
    return one.service is not None and one.identity.rpartition("/")[0] == other.identity.rpartition("/")[0]


def _identity_of(session: Session) -> str:
    identity, sources = session.get("identity"), session.get("sources")
    folder = sources.get("project_folder") if isinstance(sources, dict) else None
    try:
        return str(Identity(**identity).in_folder(folder)) if isinstance(identity, dict) else ""
    except TypeError:
        return ""


def _declared_numbers(session: Session, transport: Transport) -> set[object]:
    rows = session.get("declared")
    return {
        row.get("host_port") or row.get("container_port")
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and row.get("transport") == transport
    }


def _describe_forward(lease: Lease) -> str:
    """The forward that holds a port, for people."""
    return f"{lease.id}, a forward of {_place(lease)}"


def _place(lease: Lease) -> str:
    return lease.workspace or f"container {lease.container_id[:12]}"

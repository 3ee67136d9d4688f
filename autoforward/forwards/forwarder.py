"""The table of one session's forwards: executes the steps from `reconcile`, and publishes each fact once it is true.

Owns the bound sockets. All methods run on the control loop, one at a time (the session serializes them); blocking work
(binding under the registry's lock, files) runs in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from autoforward.core.choices import LaneName
from autoforward.core.model import DialAddress, EventName, ForwardKey, Status, Transport, dials_for
from autoforward.dataplane.messages import ForwardCounters, Route, Serve, Withdraw
from autoforward.dataplane.plane import DataPlane
from autoforward.forwards.allocator import AllocationRequest, Allocator, LeaseRow
from autoforward.forwards.candidates import AllocationFailure
from autoforward.forwards.plan import Plan, Summary, UnforwardedPort, WantedForward
from autoforward.forwards.reconcile import Existing, may_move, reconcile
from autoforward.forwards.rows import (
    Forward,
    Place,
    forward_event,
    list_rows,
    session_event,
    summary_event,
    unforwarded_event,
)
from autoforward.net.bound_pair import HostPortError, start_listening, stop_listening
from autoforward.state.document import Lease
from autoforward.state.event_log import PortEvent

RETRY_FAILED_S = 5.0
"""How often an unavailable host port is tried again."""

MAX_HELD = 64
"""Connections to one port that wait for its server."""

MAX_HELD_OF_ALL = 256
"""The same for all ports of a session."""


def _moved_by(wanted: WantedForward | None) -> str | None:
    """Why a forward is closed to move to another port; None if it is no longer wanted, or for another reason."""
    pin = wanted.pinned_host_port if wanted is not None else None
    return f"it moves to host port {pin}, which was asked for" if pin is not None else None


class Publisher(Protocol):
    """Receives events; `publish` returns the event as written, with number and time."""

    async def publish(self, event: PortEvent) -> PortEvent: ...


@dataclass(frozen=True, slots=True)
class Services:
    """Shared by all sessions. `disk` serializes work under the registry's lock."""

    plane: DataPlane
    allocator: Allocator
    publisher: Publisher
    disk: Executor


class Forwarder:
    """The forwards and unforwarded ports of one session."""

    def __init__(self, services: Services, place: Place) -> None:
        self._services = services
        self.place = place
        self._forwards: dict[ForwardKey, Forward] = {}
        self._notices: dict[ForwardKey, UnforwardedPort] = {}
        self._summary: Summary | None = None
        self._by_id: dict[str, Forward] = {}
        self._mux: str | None = None
        self._wanted_numbers: frozenset[int] = frozenset()
        self.takes_up = False
        """Until the first complete plan is applied: another supervisor had these forwards, and servers that stayed up keep their
        ports.
        """
        self._changed = asyncio.Event()
        self._held: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Forwarder {self.place.container_name}: {len(self._forwards)} forwards, {len(self._notices)} notices>"

    # State.

    @property
    def forwards(self) -> Sequence[Forward]:
        return tuple(self._forwards.values())

    @property
    def forward_ids(self) -> frozenset[str]:
        return frozenset(self._by_id)

    @property
    def leases(self) -> list[Lease]:
        """The currently bound leases."""
        return [row.lease for row in tuple(self._forwards.values()) if row.lease is not None]

    @property
    def numbers(self) -> dict[ForwardKey, int]:
        """The host port of each forward; of a failed one, the requested port."""
        return {
            key: row.host_port or row.wanted.pinned_host_port or key.container_port
            for key, row in self._forwards.items()
        }

    @property
    def has_failures(self) -> bool:
        return any(forward.status == "failed" for forward in self._forwards.values())

    def key_of(self, forward_id: str) -> ForwardKey | None:
        forward = self._by_id.get(forward_id)
        return forward.wanted.key if forward else None

    def ids_of(self, keys: Set[ForwardKey]) -> frozenset[str]:
        rows = (self._forwards[key] for key in keys if key in self._forwards)
        return frozenset(row.forward_id for row in rows if row.forward_id is not None)

    def refusal_reason(self, key: ForwardKey) -> str:
        """Why this key has no forward, for people."""
        notice = self._notices.get(key)
        return notice.reason if notice else "the limit of forwards is reached"

    def dials_of(self, forward_id: str, *, ipv6: bool = False) -> tuple[DialAddress, ...] | None:
        """Where a relay of this forward connects; None if it has ended. `ipv6`: for an IPv6 client."""
        forward = self._by_id.get(forward_id)
        return dials_for(forward.wanted.dials, forward.wanted.dials_from_ipv6, ipv6=ipv6) if forward else None

    def transport_of(self, forward_id: str) -> Transport:
        forward = self._by_id.get(forward_id)
        return forward.wanted.key.transport if forward else "tcp"

    def note_refusal(self, forward_id: str, reason: str | None) -> bool:
        """Record why a connection was refused, for `list`, until one is served; returns whether the reason is new."""
        forward = self._by_id.get(forward_id)
        if forward is None or forward.last_refusal == reason:
            return False
        forward.last_refusal = reason
        return True

    # Changes.

    def route_over(self, session_id: str | None) -> None:
        """Route connections over this session's mux from now on; None: each gets its own stream."""
        self._mux = session_id
        for row in self._forwards.values():
            self._route(row)

    def _route(self, row: Forward) -> None:
        if row.forward_id is not None and row.status != "failed":
            wanted = row.wanted
            mux = self._mux if row.status not in ("reconnecting", "waiting") else None
            route = Route(row.forward_id, mux or "", wanted.key.transport, wanted.dials, wanted.dials_from_ipv6)
            self._services.plane.submit(route)

    async def apply(self, plan: Plan, host_ip: str) -> None:
        """Go from the current forwards to the plan. Events follow each step; a failed step leaves a `failed` row.

        The container is reachable: `reconnecting` forwards get their former status, except those without a server.
        """
        self._wanted_numbers = frozenset(
            wanted.pinned_host_port or wanted.key.container_port for wanted in plan.forwards.values()
        )
        moving = await self._moving(plan, host_ip)
        await self._resume(plan, moving)
        steps = reconcile(self._existing(), self._notices, plan, host_ip, moving)
        for key in (key for key in steps.close if key not in moving):
            await self._close([self._forwards[key]], _moved_by(plan.forwards.get(key)), reset=False)
        own_number = "it gets its own number, which is free again"
        await self._close([self._forwards[key] for key in steps.close if key in moving], own_number, reset=False)
        # Close first: an observer would otherwise take the new forward as ended.
        for key in steps.dropped_notices:
            await self._publish_notice("unforwarded", self._notices.pop(key))
        for wanted in steps.withdraw:
            await self._withdraw(self._forwards[wanted.key], wanted)
        reopen = [wanted for wanted in steps.serve if not await self._serve(self._forwards[wanted.key], wanted)]
        for wanted in steps.update:
            await self._update(self._forwards[wanted.key], wanted)
        await self._open([*reopen, *steps.open], host_ip)
        self.takes_up = self.takes_up and plan.undecided > 0  # undecided ports were up as well
        for notice in steps.notices:
            before, self._notices[notice.key] = self._notices.get(notice.key), notice
            event: EventName = "failed" if notice.status == "failed" else "ignored"
            if before is not None and (before.status, before.reason) == (notice.status, notice.reason):
                event = "updated"  # its label, or its newly known process
            await self._publish_notice(event, notice)
        if plan.undecided and self._summary is None:
            return  # its number would change again soon
        await self._summarise(plan.summary)

    def _existing(self) -> dict[ForwardKey, Existing]:
        return {
            key: Existing(row.wanted, row.status, row.host_ip, row.host_port) for key, row in self._forwards.items()
        }

    async def _moving(self, plan: Plan, host_ip: str) -> set[ForwardKey]:
        """The forwards that get their own port now that their servers come back."""
        requests = [
            self._request(plan.forwards[key], host_ip)
            for key, have in self._existing().items()
            if key in plan.forwards
            and may_move(have, plan.forwards[key], came_back=key in plan.came_back)
            and not self._held[self._forwards[key].forward_id or ""]
        ]
        return await self._on_disk(lambda: self._services.allocator.better_numbers(requests)) if requests else set()

    async def _summarise(self, summary: Summary | None) -> None:
        """A container can change the count constantly: events report the fact, rows the number."""
        said, self._summary = self._summary, summary
        if summary is None and said is not None:
            await self._services.publisher.publish(self.session_event("unforwarded", said.fact))
        elif summary is not None and (said is None or said.fact != summary.fact):
            event: EventName = "ignored" if said is None else "updated"
            await self._services.publisher.publish(summary_event(self.place, event, summary.fact))

    async def retry_failed(self, host_ip: str) -> None:
        """Retry unavailable host ports."""
        failed = [row for row in self._forwards.values() if row.status == "failed"]
        if failed:
            await self._open([row.wanted for row in failed], host_ip)

    async def suspend(self, reason: str) -> None:
        """The container is unreachable: keep the sockets bound and set the status."""
        for row in self._forwards.values():
            await self._suspend(row, reason)
        self._tell_waiting()

    async def _suspend(self, row: Forward, reason: str) -> None:
        if row.status == "reconnecting":
            row.reason = reason
        elif row.status in ("active", "waiting"):
            row.status, row.reason = "reconnecting", reason
            self._route(row)
            await self._publish("reconnecting", row)

    async def _resume(self, plan: Plan, moving: Set[ForwardKey]) -> None:
        returning = plan.returning
        for key, row in self._forwards.items():
            if key.ordinary in returning:
                await self._suspend(row, "its server is not back yet")
            elif key in moving:
                continue  # it is closed and reopened on its own port
            elif (
                row.status == "reconnecting" and row.pair is not None and (wanted := plan.forwards.get(key)) is not None
            ):
                was_active = row.pair.listening and row.wanted.serving
                row.status, row.reason = ("active" if was_active else "waiting"), None
                self._route(row)
                if wanted.serving or not was_active:  # else a withdrawal with its own event follows
                    await self._publish("reconnected", row)
        self._tell_waiting()

    def is_reachable(self, forward_id: str) -> bool:
        """Whether a connection of this forward need not wait; also true after its end."""
        row = self._by_id.get(forward_id)
        return row is None or row.status != "reconnecting"

    def holds_s(self, forward_id: str) -> float:
        """How long a new connection waits for this forward's server; 0: not at all."""
        row = self._by_id.get(forward_id)
        return row.wanted.holds_s if row is not None and row.status == "waiting" else 0.0

    @contextlib.contextmanager
    def held(self, forward_id: str) -> Iterator[str | None]:
        """While a connection waits for the server, the forward keeps its port. Yields why it may not wait, or None."""
        for held, limit in ((self._held[forward_id], MAX_HELD), (self._held.total(), MAX_HELD_OF_ALL)):
            if held >= limit:
                yield f"{limit} connections wait for a server already"
                return
        self._held[forward_id] += 1
        try:
            yield None
        finally:
            self._held[forward_id] -= 1
            self._held += Counter()  # drop zero counts

    async def wait_changed(self) -> None:
        """Wait until `is_reachable` or `holds_s` may have changed."""
        await self._changed.wait()

    def _tell_waiting(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def move_to(self, place: Place) -> None:
        """The workspace is in another container: bound ports stay bound, rows name the new one."""
        if place == self.place:
            return
        self.place = place
        leases = []
        for row in self._forwards.values():
            if row.lease is not None:
                row.lease = replace(
                    row.lease,
                    container_id=place.container_id,
                    workspace=place.workspace_folder,
                    identity=place.identity,
                )
                leases.append(row.lease)
        if leases:
            await self._on_disk(lambda: self._services.allocator.update_rows(leases))

    async def close_all(self, reason: str) -> None:
        """End every forward: close listeners, cut connections, reserve leases, publish events."""
        await self._close(list(self._forwards.values()), reason, reset=True)
        notices, self._notices = self._notices, {}
        ends = [self._notice_event("unforwarded", replace(notice, reason=reason)) for notice in notices.values()]
        await self._publish_all(ends)
        await self._summarise(None)

    async def give_up(self, numbers: Set[tuple[str, int]]) -> None:
        """Release those of these (transport, host port) without a running server: another container asks for them."""
        rows = [
            row
            for key, row in self._forwards.items()
            if row.status in ("reconnecting", "waiting") and (key.transport, row.host_port) in numbers
        ]
        await self._close(rows, "a container that publishes this host port was created", reset=True)

    async def close_one(self, key: ForwardKey, reason: str) -> None:
        if key in self._forwards:
            await self._close([self._forwards[key]], reason, reset=True)

    # Steps.

    async def _open(self, forwards: Sequence[WantedForward], host_ip: str) -> None:
        """Bind the wanted forwards. One that failed before for the same reason publishes nothing."""
        if not forwards:
            return
        requests = [self._request(wanted, host_ip) for wanted in forwards]
        results = await self._on_disk(lambda: self._services.allocator.allocate_many(requests))
        for wanted, result in zip(forwards, results, strict=True):
            before = self._forwards.get(wanted.key)
            if isinstance(result, AllocationFailure):
                row = Forward(wanted, "failed", host_ip, reason=result.reason, hint=result.hint)
                self._forwards[wanted.key] = row
                if before is None or before.reason != result.reason:
                    await self._publish("failed", row)
                    continue
                row.since_s = before.since_s
                if self._event("updated", row) != self._event("updated", before):
                    await self._publish("updated", row)
                continue
            status: Status = "active" if wanted.serving else "waiting"
            remap = result.remap_reason
            row = Forward(wanted, status, host_ip, result.pair, result.lease, remap)
            self._forwards[wanted.key] = self._by_id[result.lease.id] = row
            self._route(row)
            if wanted.accepts:
                self._services.plane.submit(Serve(result.lease.id, result.pair.sockets))
            await self._publish("forwarded" if wanted.serving else "waiting", row)

    def _request(self, wanted: WantedForward, host_ip: str) -> AllocationRequest:
        return AllocationRequest(
            identity=self.place.identity,
            key=wanted.key,
            host_ip=host_ip,
            row=LeaseRow(
                container_id=self.place.container_id,
                workspace=self.place.workspace_folder,
                label=wanted.attributes.label,
                service=self.place.service,
                source=wanted.source,
            ),
            pinned_host_port=wanted.pinned_host_port,
            elevate=bool(wanted.attributes.elevate_if_needed),
            require_same=bool(wanted.attributes.require_local_port),
            wanted=self._wanted_numbers,
            stays=self.takes_up,
            listen=wanted.accepts,
        )

    async def _serve(self, row: Forward, wanted: WantedForward) -> bool:
        """Accept: the server is up, or connections wait for it. False if the port was lost and must be opened again."""
        if row.pair is None or row.forward_id is None:
            return False
        try:
            start_listening(row.pair)
        except HostPortError:
            await self._close([row], "the reserved host port was taken", reset=True)
            return False
        row.wanted, row.status, row.reason = wanted, ("active" if wanted.serving else "waiting"), None
        row.last_refusal = None
        self._route(row)
        self._services.plane.submit(Serve(row.forward_id, row.pair.sockets))
        self._tell_waiting()
        await self._publish("forwarded" if wanted.serving else "waiting", row)
        return True

    async def _withdraw(self, row: Forward, wanted: WantedForward) -> None:
        """The server is gone: refuse connections, keep the port."""
        if row.pair is None or row.forward_id is None:
            return
        await self._stop_accepting([row.forward_id], reset=False)
        stop_listening(row.pair)
        row.wanted, row.status = wanted, "waiting"
        self._tell_waiting()
        await self._publish("waiting", row)

    async def _update(self, row: Forward, wanted: WantedForward) -> None:
        before = self._event("updated", row)
        row.wanted = wanted
        self._route(row)
        if row.lease is not None and (row.lease.label, row.lease.source) != (wanted.attributes.label, wanted.source):
            row.lease = lease = replace(row.lease, label=wanted.attributes.label, source=wanted.source)
            await self._on_disk(lambda: self._services.allocator.update_rows([lease]))
        after = self._event("updated", row)
        if after != before:
            await self._services.publisher.publish(after)

    async def _close(self, rows: Sequence[Forward], reason: str | None, *, reset: bool) -> None:
        """End these. Without `reset` open connections continue: their server may still answer."""
        bound = {}
        for row in rows:
            del self._forwards[row.wanted.key]
            if row.pair is not None and row.forward_id is not None:
                del self._by_id[row.forward_id]
                bound[row.forward_id] = row.pair
        await self._stop_accepting(bound, reset=reset)
        for pair in bound.values():
            pair.close()
        self._tell_waiting()
        if bound:
            await self._on_disk(lambda: self._services.allocator.release(list(bound)))
        events = []
        for row in rows:
            why = reason or ("the server stopped" if row.wanted.source == "detected" else "no longer asked for")
            events.append(replace(self._event("unforwarded", row), status=None, auto_forwarded=False, reason=why))
        await self._publish_all(events)

    async def _stop_accepting(self, forward_ids: Iterable[str], *, reset: bool) -> None:
        """All at once: one after the other, each would wait for a turn of the data plane."""
        withdrawals = [Withdraw(forward_id, reset, Future()) for forward_id in forward_ids]
        for withdrawal in withdrawals:
            self._services.plane.submit(withdrawal)
        await asyncio.gather(*(asyncio.wrap_future(one.done) for one in withdrawals))

    async def _on_disk(self, job: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._services.disk, job)

    # Events and rows.

    def replay_events(self, last_seq: int, now: str) -> list[PortEvent]:
        """One `forwarded` event per active forward, for a late subscriber."""
        rows = (row for row in self._forwards.values() if row.status == "active")
        return [replace(self._event("forwarded", row), replay=True, seq=last_seq, time=now) for row in rows]

    def session_event(self, event: EventName, reason: str | None = None) -> PortEvent:
        return session_event(self.place, event, reason)

    def rows(
        self, target: str, lane: LaneName | None, counters: Mapping[str, ForwardCounters], remarks: Sequence[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """See `rows.list_rows`."""
        return list_rows(
            self.place,
            self._forwards.values(),
            self._notices.values(),
            self._summary,
            target=target,
            lane=lane,
            counters=counters,
            remarks=remarks,
            is_free=self._services.allocator.is_free,
        )

    def _event(self, event: EventName, row: Forward) -> PortEvent:
        return forward_event(self.place, event, row)

    async def _publish(self, event: EventName, row: Forward) -> None:
        await self._services.publisher.publish(self._event(event, row))

    async def _publish_all(self, events: Iterable[PortEvent]) -> None:
        """In this order, without waiting for each before the next one."""
        await asyncio.gather(*(self._services.publisher.publish(event) for event in events))

    async def _publish_notice(self, event: EventName, notice: UnforwardedPort) -> None:
        await self._services.publisher.publish(self._notice_event(event, notice))

    def _notice_event(self, event: EventName, notice: UnforwardedPort) -> PortEvent:
        facts = unforwarded_event(self.place, event, notice)
        return replace(facts, status=None) if event == "unforwarded" else facts

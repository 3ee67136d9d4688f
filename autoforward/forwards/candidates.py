"""The host ports to try for a forward, in order. Pure; the bind decides."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from autoforward.core.model import FIRST_UNPRIVILEGED

LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class AllocationFailure:
    """A failed allocation: reason and hint for people."""

    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """Ports in the order to try. `strict`: the only candidate is the only choice. `refusal`: no candidate.

    `not_same`: why the container's own port is no candidate (None if it is one).
    """

    candidates: Iterable[int] = ()
    strict: bool = False
    not_same: str | None = None
    refusal: AllocationFailure | None = None


def not_taken(host_port: int, lowest_port: int | None) -> str:
    """Why a port below 1024 is not tried. `lowest_port`: the lowest that this user may bind; None if unknown."""
    if lowest_port is None:
        return f"host port {host_port} is privileged"
    if host_port < lowest_port:
        may = f"this user may bind from {lowest_port} on (sysctl net.ipv4.ip_unprivileged_port_start)"
        return f"host port {host_port} is privileged: {may}"
    ways = f"a pin ({host_port}:{host_port}) takes it, or elevateIfNeeded with your approval"
    return f"host port {host_port} is below 1024: {ways}"


def plan_candidates(
    container_port: int,
    *,
    pinned_host_port: int | None = None,
    leased_host_port: int | None = None,
    yields_to: str | None = None,
    elevate: bool = False,
    require_same: bool = False,
    wanted: Collection[int] = (),
    taken: Collection[int] = (),
    lowest_port: int | None = None,
) -> CandidatePlan:
    """Pinned, else the same port, the lease's, 8000 + n for n < 1000, then upward, wrapping at 1024.

    Each port at most once. `wanted`: ports that the container's other forwards want; the lease, 8000 + n and the walk
    skip them. `taken` (known to be in use) is skipped in the walk only: for a requested port the bind decides. The walk
    is lazy and may yield every port. `yields_to`: why the lease's port goes before the same one (both workspaces have
    settled), else None. `lowest_port` as in `not_taken`.
    """
    if pinned_host_port is not None:
        return CandidatePlan((pinned_host_port,), strict=True)
    is_denied = container_port < FIRST_UNPRIVILEGED and not elevate
    not_same = not_taken(container_port, lowest_port) if is_denied else None
    if require_same:
        if not_same is not None:
            hint = "set elevateIfNeeded for this port, or take requireLocalPort away"
            return CandidatePlan(strict=True, refusal=AllocationFailure(not_same, hint))
        return CandidatePlan((container_port,), strict=True)
    first = [] if is_denied else [container_port]
    if leased_host_port is None or leased_host_port in wanted:
        pass
    elif leased_host_port >= FIRST_UNPRIVILEGED or elevate:
        first.insert(0 if yields_to else len(first), leased_host_port)
        not_same = not_same or yields_to
    base = container_port if container_port >= 1000 else 8000 + container_port
    if base != container_port and base not in wanted:
        first.append(base)
    return CandidatePlan(_without_duplicates(first, base + 1, {*wanted, *taken}), not_same=not_same)


def _without_duplicates(first: Sequence[int], start: int, passed_over: Collection[int]) -> Iterator[int]:
    known = dict.fromkeys(first)
    yield from known
    start = max(start, FIRST_UNPRIVILEGED)
    walk = itertools.chain(range(start, LAST_PORT + 1), range(FIRST_UNPRIVILEGED, min(start, LAST_PORT + 1)))
    for number in walk:
        if number not in known and number not in passed_over:
            yield number

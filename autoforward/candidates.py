"""Which host ports to try for a forward, in which order. Pure; the bind itself decides."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from autoforward.model import FIRST_UNPRIVILEGED

LAST_PORT = 65535


@dataclass(frozen=True, slots=True)
class AllocationFailure:
    """What was not, in words for people."""

    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CandidatePlan:
    """Numbers in the order to try. `strict`: the only candidate is the only choice. `refusal`: there is none.

    `not_same` says why the container's own number is not a candidate (None when it is one).
    """

    candidates: Iterable[int] = ()
    strict: bool = False
    not_same: str | None = None
    refusal: AllocationFailure | None = None


def privileged(host_port: int) -> str:
    """The reason for which a number below 1024 is not bound."""
    return f"host port {host_port} is privileged"


def plan_candidates(
    container_port: int,
    *,
    pinned_host_port: int | None = None,
    sticky_host_port: int | None = None,
    elevate: bool = False,
    require_same: bool = False,
    sticky_was_privileged: bool = False,
    taken: Collection[int] = (),
) -> CandidatePlan:
    """Pinned, else sticky, same number, 8000 + n for a privileged n < 1000, then upward wrapping at 1024.

    No number comes twice. `taken` (known to be in use) is left out of the walk upward only: for the numbers
    that someone asked for, the bind itself has to say no. The walk is lazy, and may yield every number. With
    `sticky_was_privileged` the sticky number was second best because the same one is privileged: it stays second.
    """
    if pinned_host_port is not None:
        return CandidatePlan((pinned_host_port,), strict=True)
    is_denied = container_port < FIRST_UNPRIVILEGED and not elevate
    not_same = privileged(container_port) if is_denied else None
    if require_same:
        if not_same is not None:
            hint = "set elevateIfNeeded for this port, or take requireLocalPort away"
            return CandidatePlan(strict=True, refusal=AllocationFailure(not_same, hint))
        return CandidatePlan((container_port,), strict=True)
    first: list[int] = []
    if sticky_host_port is not None and (sticky_host_port >= FIRST_UNPRIVILEGED or elevate):
        first.append(sticky_host_port)
    if not is_denied:
        first.insert(0 if sticky_was_privileged else len(first), container_port)
    if container_port < 1000:
        first.append(8000 + container_port)
    return CandidatePlan(_without_duplicates(first, taken), not_same=not_same)


def _without_duplicates(first: Sequence[int], taken: Collection[int]) -> Iterator[int]:
    wanted = dict.fromkeys(first)
    yield from wanted
    start = max(first[-1] + 1 if first else FIRST_UNPRIVILEGED, FIRST_UNPRIVILEGED)
    walk = itertools.chain(range(start, LAST_PORT + 1), range(FIRST_UNPRIVILEGED, min(start, LAST_PORT + 1)))
    for number in walk:
        if number not in wanted and number not in taken:
            yield number

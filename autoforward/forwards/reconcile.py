"""Compute the steps from the existing forwards to those that a plan wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from autoforward.core.model import FIRST_UNPRIVILEGED, ForwardKey, Status
from autoforward.forwards.plan import Plan, UnforwardedPort, WantedForward


@dataclass(frozen=True, slots=True)
class Existing:
    """A forward's current state, as far as the steps depend on it."""

    wanted: WantedForward
    status: Status | None
    host_ip: str | None
    host_port: int | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """In this order: close; withdraw, serve and update what stays; open.

    An opened forward has no row yet, or a failed one, which stays until the outcome is known.
    """

    close: tuple[ForwardKey, ...] = ()
    withdraw: tuple[WantedForward, ...] = ()
    serve: tuple[WantedForward, ...] = ()
    update: tuple[WantedForward, ...] = ()
    open: tuple[WantedForward, ...] = ()
    notices: tuple[UnforwardedPort, ...] = field(default=())
    dropped_notices: tuple[ForwardKey, ...] = ()


def _claim(wanted: WantedForward) -> tuple[object, ...]:
    """What determines a host socket, and how it is served."""
    attributes = wanted.attributes
    return (
        wanted.pinned_host_port,
        attributes.require_local_port,
        attributes.elevate_if_needed,
        wanted.dials,
        wanted.serving,
    )


def _needs_another_number(have: Existing, wanted: WantedForward) -> bool:
    """Whether its host port is not, or may not be, the one that it would get now."""
    if wanted.pinned_host_port != have.wanted.pinned_host_port:
        return True
    if wanted.pinned_host_port is not None or have.host_port is None:
        return False
    same, attributes = wanted.key.container_port, wanted.attributes
    if attributes.require_local_port and have.host_port != same:
        return True
    if bool(attributes.elevate_if_needed) == bool(have.wanted.attributes.elevate_if_needed):
        return False
    # Another port than its own may be better now; a privileged one is no longer allowed.
    return have.host_port != same < FIRST_UNPRIVILEGED or have.host_port < FIRST_UNPRIVILEGED


def _starts_or_stops_holding(have: Existing, wanted: WantedForward) -> bool:
    """Whether the port of a server that is down must start or stop listening."""
    return have.status == "waiting" and wanted.accepts != have.wanted.accepts


def may_move(have: Existing, wanted: WantedForward, *, came_back: bool) -> bool:
    """Whether a forward on another port may move to its own now: its server comes (back)."""
    if have.host_port in (None, wanted.key.container_port) or not wanted.serving:
        return False
    if wanted.pinned_host_port is not None or wanted.attributes.require_local_port:
        return False
    return came_back or have.status == "waiting"


def reconcile(
    existing: Mapping[ForwardKey, Existing],
    noticed: Mapping[ForwardKey, UnforwardedPort],
    plan: Plan,
    host_ip: str,
    moving: Set[ForwardKey] = frozenset(),
) -> Steps:
    """The steps from the current forwards to the plan. A forward that needs another host socket is closed and opened.

    `moving`: forwards that get their own number now (`may_move`).
    """
    close: list[ForwardKey] = []
    withdraw: list[WantedForward] = []
    serve: list[WantedForward] = []
    update: list[WantedForward] = []
    replaced: set[ForwardKey] = set()
    for key, have in existing.items():
        wanted = plan.forwards.get(key)
        elsewhere = have.host_ip not in (None, host_ip)
        if wanted is None:
            close.append(key)
        elif have.status == "failed" and (elsewhere or _claim(wanted) != _claim(have.wanted)):
            replaced.add(key)
        elif have.status != "failed" and (elsewhere or key in moving or _needs_another_number(have, wanted)):
            close.append(key)
            replaced.add(key)
        elif wanted.serving and have.status == "waiting":
            serve.append(wanted)
        elif not wanted.serving and (have.status == "active" or _starts_or_stops_holding(have, wanted)):
            (serve if wanted.accepts else withdraw).append(wanted)
        elif wanted != have.wanted:
            update.append(wanted)
    opens = [wanted for key, wanted in plan.forwards.items() if key not in existing or key in replaced]
    return Steps(
        close=tuple(close),
        withdraw=tuple(withdraw),
        serve=tuple(serve),
        update=tuple(update),
        open=tuple(opens),
        notices=tuple(notice for key, notice in plan.notices.items() if noticed.get(key) != notice),
        dropped_notices=tuple(key for key in noticed if key not in plan.notices),
    )

"""Compute the steps from the existing forwards to those that a plan wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from autoforward.core.model import FIRST_UNPRIVILEGED, ForwardKey, Status
from autoforward.forwards.plan import Plan, UnforwardedPort, WantedForward


@dataclass(frozen=True, slots=True)
class Existing:
    """A forward as it stands, as far as the steps depend on it."""

    wish: WantedForward
    status: Status | None
    host_ip: str | None
    host_port: int | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """In this order: close, then withdraw, serve and update what stays, then open.

    What is opened has no row yet, or one that failed: that one stays until it is known whether it can be had now.
    """

    close: tuple[ForwardKey, ...] = ()
    withdraw: tuple[WantedForward, ...] = ()
    serve: tuple[WantedForward, ...] = ()
    update: tuple[WantedForward, ...] = ()
    open: tuple[WantedForward, ...] = ()
    notices: tuple[UnforwardedPort, ...] = field(default=())
    dropped_notices: tuple[ForwardKey, ...] = ()


def _claim(wish: WantedForward) -> tuple[object, ...]:
    """What decides about a host socket, and about how it is served."""
    attributes = wish.attributes
    return wish.pinned_host_port, attributes.require_local_port, attributes.elevate_if_needed, wish.dials, wish.serving


def _needs_another_number(have: Existing, wish: WantedForward) -> bool:
    """Whether the host port that it has is not, or may not be, the one that it would be given now."""
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


def _starts_or_stops_holding(have: Existing, wish: WantedForward) -> bool:
    """Whether the host port of a server that is not up has to listen from now on, or not any more."""
    return have.status == "waiting" and wish.accepts != have.wish.accepts


def may_move(have: Existing, wish: WantedForward, *, came_back: bool) -> bool:
    """Whether this is a moment at which a forward on another number than its own may get its own: its server comes (back)."""
    if have.host_port in (None, wish.key.container_port) or not wish.serving:
        return False
    if wish.pinned_host_port is not None or wish.attributes.require_local_port:
        return False
    return came_back or have.status == "waiting"


def reconcile(
    existing: Mapping[ForwardKey, Existing],
    noticed: Mapping[ForwardKey, UnforwardedPort],
    wanted: Plan,
    host_ip: str,
    moving: Set[ForwardKey] = frozenset(),
) -> Steps:
    """The steps from what there is to the plan. What needs another host socket is a close and an open.

    `moving`: forwards that would get their own number now, at a moment at which they may (`may_move`).
    """
    close: list[ForwardKey] = []
    withdraw: list[WantedForward] = []
    serve: list[WantedForward] = []
    update: list[WantedForward] = []
    replaced: set[ForwardKey] = set()
    for key, have in existing.items():
        wish = wanted.wishes.get(key)
        elsewhere = have.host_ip not in (None, host_ip)
        if wish is None:
            close.append(key)
        elif have.status == "failed" and (elsewhere or _claim(wish) != _claim(have.wish)):
            replaced.add(key)
        elif have.status != "failed" and (elsewhere or key in moving or _needs_another_number(have, wish)):
            close.append(key)
            replaced.add(key)
        elif wish.serving and have.status == "waiting":
            serve.append(wish)
        elif not wish.serving and (have.status == "active" or _starts_or_stops_holding(have, wish)):
            (serve if wish.accepts else withdraw).append(wish)
        elif wish != have.wish:
            update.append(wish)
    opens = [wish for key, wish in wanted.wishes.items() if key not in existing or key in replaced]
    return Steps(
        close=tuple(close),
        withdraw=tuple(withdraw),
        serve=tuple(serve),
        update=tuple(update),
        open=tuple(opens),
        notices=tuple(notice for key, notice in wanted.notices.items() if noticed.get(key) != notice),
        dropped_notices=tuple(key for key in noticed if key not in wanted.notices),
    )

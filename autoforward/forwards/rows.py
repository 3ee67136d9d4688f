"""Render forwards as rows of `list --json` and as PORT_EVENT objects. Pure except for the age."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoforward.core.addresses import is_loopback
from autoforward.core.choices import LaneName
from autoforward.core.model import EventName, ForwardKey, PortAttributes, Status, Transport
from autoforward.dataplane.messages import ForwardCounters
from autoforward.forwards.plan import Summary, UnforwardedPort, WantedForward
from autoforward.net.bound_pair import BoundPair
from autoforward.state.document import Lease
from autoforward.state.event_log import PortEvent, list_row

LOOPBACK = "127.0.0.1"

IN_USE, WAS_IN_USE = " is in use", " was in use"


def exposure(host_ip: str | None) -> str | None:
    """The warning about a forward on this address; None on loopback (None: the default)."""
    return None if host_ip is None or is_loopback(host_ip) else f"other machines can reach it: it listens on {host_ip}"


@dataclass(frozen=True, slots=True)
class Place:
    """The session of the forwards, as events name it."""

    identity: str
    container_id: str
    container_name: str
    workspace_folder: str | None
    service: str | None


@dataclass(slots=True)
class Forward:
    """One row of the table. `pair` and `lease` are None while `failed`; `reason` explains any status but plain `active`."""

    wanted: WantedForward
    status: Status
    host_ip: str
    pair: BoundPair | None = None
    lease: Lease | None = None
    remap_reason: str | None = None
    reason: str | None = None
    hint: str | None = None
    since_s: float = field(default_factory=time.monotonic)
    last_refusal: str | None = None

    @property
    def forward_id(self) -> str | None:
        return self.lease.id if self.lease else None

    @property
    def host_port(self) -> int | None:
        return self.pair.host_port if self.pair else None


def session_event(place: Place, event: EventName, reason: str | None = None) -> PortEvent:
    """An event about the whole session."""
    return PortEvent(
        event=event,
        container_id=place.container_id,
        container_name=place.container_name,
        workspace_folder=place.workspace_folder,
        service=place.service,
        reason=reason,
    )


def summary_event(place: Place, event: EventName, text: str) -> PortEvent:
    return replace(session_event(place, event, text), status="ignored")


def forward_event(place: Place, event: EventName, row: Forward, remap_reason: str | None = None) -> PortEvent:
    wanted = row.wanted
    host_port = row.host_port
    exposed = exposure(row.host_ip) if host_port is not None else None
    particular = "; ".join(filter(None, (wanted.note, remap_reason or row.remap_reason)))
    pinned_or_same = wanted.pinned_host_port or wanted.key.container_port
    return replace(
        _port_event(place, event, wanted.key, wanted.attributes),
        process=wanted.process,
        auto_forwarded=row.status == "active",
        host_port=host_port,
        host_ip=row.host_ip if host_port is not None else None,
        id=row.forward_id,
        container_host=wanted.dials[0].host,
        remapped=host_port is not None and host_port != pinned_or_same,
        status=row.status,
        reason="; ".join(filter(None, (exposed, row.reason or row.last_refusal or particular))) or None,
    )


def unforwarded_event(place: Place, event: EventName, notice: UnforwardedPort) -> PortEvent:
    return replace(
        _port_event(place, event, notice.key, notice.attributes),
        process=notice.process,
        host_port=notice.host_port,
        host_ip=notice.host_ip,
        container_host=notice.key.container_host,
        remapped=notice.host_port is not None and notice.host_port != notice.key.container_port,
        status=notice.status,
        reason=notice.reason,
    )


def _port_event(place: Place, event: EventName, key: ForwardKey, attributes: PortAttributes) -> PortEvent:
    return replace(
        session_event(place, event),
        container_port=key.container_port,
        protocol=attributes.protocol,
        label=attributes.label,
        on_auto_forward=attributes.on_auto_forward,
        description=attributes.description,
        open_preview=attributes.open_preview,
        require_local_port=attributes.require_local_port,
        elevate_if_needed=attributes.elevate_if_needed,
        transport=key.transport,
    )


def remap_reason_now(row: Forward, is_free: Callable[[str, int, Transport], bool]) -> str | None:
    """Why it is on another port, if that still applies."""
    reason, own = row.remap_reason, row.wanted.key.container_port
    if reason is None or IN_USE not in reason:
        return reason
    if not is_free(row.host_ip, own, row.wanted.key.transport):
        return reason
    was = reason.replace(IN_USE, WAS_IN_USE, 1)
    return f"{was} and is free now: this port gets it when its server restarts"


def list_rows(
    place: Place,
    forwards: Iterable[Forward],
    unforwarded: Iterable[UnforwardedPort],
    summary: Summary | None,
    *,
    target: str,
    lane: LaneName | None,
    counters: Mapping[str, ForwardCounters],
    remarks: Sequence[str],
    is_free: Callable[[str, int, Transport], bool],
) -> Iterator[dict[str, Any]]:
    """The rows of `list --json`: forwards, unforwarded ports, the summary of the rest, and the session's `remarks`."""
    now_s = time.monotonic()
    for row in forwards:
        count = counters.get(row.forward_id or "", ForwardCounters())
        yield list_row(
            forward_event(place, "updated", row, remap_reason_now(row, is_free)),
            target=target,
            source=row.wanted.source,
            lane=lane,
            age_s=now_s - row.since_s,
            connections_active=count.active,
            connections_total=count.total,
            connections_refused=count.refused,
            bytes_in=count.bytes_in,
            bytes_out=count.bytes_out,
            last_refusal=row.last_refusal if row.status == "active" else None,
        )
    others = [(unforwarded_event(place, "ignored", port), port.source) for port in unforwarded]
    if summary is not None:
        others.append((summary_event(place, "ignored", summary.now), "detected"))
    others += [(summary_event(place, "ignored", remark), "declared") for remark in remarks]
    for event, source in others:
        yield list_row(event, target=target, source=source, lane=None, age_s=0.0)

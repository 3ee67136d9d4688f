"""Write the `ended` events that a killed supervisor could not write.

Forwards that the event log shows as up while no supervisor runs have ended with it: the next supervisor, or a command
that ends sessions on disk, writes that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from autoforward.core.addresses import is_own_host
from autoforward.core.model import EventName
from autoforward.state.event_lines import read_events
from autoforward.state.event_log import EventLog, PortEvent
from autoforward.state.folder import StatePaths

REASON = "the supervisor was killed"

_Key = tuple[Any, ...]
_TEXTS = ("containerId", "containerHost", "id", "transport", "hostIp", "process", "protocol", "label", "status")
_NUMBERS = ("port", "localPort")


def log_missing_ends(paths: StatePaths, log: EventLog) -> int:
    """Append an end for everything that the log shows as up; returns how many. The caller holds the supervisor's lock."""
    ends = left_open(read_events(paths))
    for event in ends:
        log.append(event)
    return len(ends)


def left_open(events: Iterable[Mapping[str, Any]]) -> list[PortEvent]:
    """The ends that these events lack: `unforwarded` for each shown port, then `detached` for each session.

    A port is identified by its forward's id, because it may move to another container (with its session), else by
    number.
    """
    ports: dict[_Key, Mapping[str, Any]] = {}
    sessions: dict[str | None, Mapping[str, Any]] = {}
    keys: dict[str, _Key] = {}
    for event in filter(_is_ours, events):
        container_id, forward_id, name = event.get("containerId"), event.get("id"), event.get("event")
        key = _key_of(event)
        if name == "attached":
            sessions[container_id] = event
        elif name == "detached":
            sessions.pop(container_id, None)
        elif event.get("status") is None and name != "unforwarded":
            continue  # from a session with invalid files
        else:
            before = keys.pop(forward_id, key) if forward_id is not None else key
            last = ports.pop(before, None)
            ports.pop(key, None)
            if last is not None and before[0] in sessions and container_id not in sessions:
                sessions.pop(before[0])
                sessions[container_id] = event
            if name != "unforwarded":
                ports[key] = event
                if forward_id is not None:
                    keys[forward_id] = key
    return [*(_end_of(event) for event in ports.values()), *(_detached(event) for event in sessions.values())]


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Whether it is an event: a damaged line must not keep a supervisor from starting."""
    return (
        values.get("event") in get_args(EventName)
        and all(isinstance(values.get(key), str | None) for key in _TEXTS)
        and all(isinstance(values.get(key), int | None) for key in _NUMBERS)
    )


def _key_of(event: Mapping[str, Any]) -> _Key:
    host = event.get("containerHost")
    return (
        event.get("containerId"),
        event.get("transport"),
        None if is_own_host(host) else host,
        event.get("port"),
    )


def _end_of(values: Mapping[str, Any]) -> PortEvent:
    event = PortEvent.from_json(values)
    return replace(event, event="unforwarded", status=None, auto_forwarded=False, reason=REASON)


def _detached(values: Mapping[str, Any]) -> PortEvent:
    event = PortEvent.from_json(values)
    return PortEvent(
        event="detached",
        container_id=event.container_id,
        container_name=event.container_name,
        workspace_folder=event.workspace_folder,
        service=event.service,
        reason=REASON,
    )

"""Switch direct paths on and off as the networks of containers change: one inspection per engine at a time.

Level-triggered: every event leads to another inspection, after a pause. A path is off from the event about a newcomer
on its network until that one was inspected. A container that leaves is polled until it has left: an engine may send
`die` before that, and nothing after.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from autoforward.core.backoff import delay_s
from autoforward.core.errors import AutoforwardError
from autoforward.core.identity.network_sharing import DirectPath
from autoforward.core.model import EngineEndpoint
from autoforward.engine.client import ContainerEvent
from autoforward.engine.network_inspector import NetworkInspector
from autoforward.engine.pool import EnginePool
from autoforward.supervisor.session.session import Session

log = logging.getLogger(__name__)

PAUSE_S = 0.2
"""Minimum from one inspection to the next: a thousand containers that come and go cause one."""

LONGEST_PAUSE_S = 1.0
"""Maximum: after a slow inspection the pause is ten times its duration, up to this."""

STARTING = DirectPath(None, "a container has just joined its network and has not been looked at yet")
ACTIONS = frozenset({"start", "die", "died", "remove", "connect", "disconnect"})
"""Podman sends no `disconnect` for a container that ends, and `remove` after it has left its networks."""


class Host(Protocol):
    """What this module needs of the supervisor."""

    sessions: dict[str, Session]
    engines: EnginePool

    def spawn(self, work: object, name: str) -> None: ...


@dataclass(slots=True)
class _Place:
    """One engine. `changed`: ids of networks with events since the last inspection began; None: any of them.

    `over`: by container id, the network of its direct path.
    """

    endpoint: EngineEndpoint
    inspect: NetworkInspector | None = None
    changed: set[str] | None = None
    over: Mapping[str, str | None] = field(default_factory=dict)
    is_due: bool = False
    is_inspecting: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class NetworkWatch:
    """See the module. Control loop only."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._places: dict[object, _Place] = {}

    def on_event(self, endpoint: EngineEndpoint, event: ContainerEvent | None) -> None:
        """None: events may have been missed."""
        place = self._places.get(endpoint.key)
        if place is None or (event is not None and event.action not in ACTIONS):
            return
        if event is None:
            place.changed = None
        elif event.network_id is not None:
            if place.changed is not None:
                place.changed.add(event.network_id)
            if event.action == "connect":
                for session in self._sessions(place):
                    if place.over.get(session.record.container_id) == event.network_id:
                        session.direct.decide(STARTING)
        self._begin(place)

    def on_session_changed(self) -> None:
        """Inspect the networks of sessions that have a new agent."""
        keys = {session.record.endpoint.key for session in self._host.sessions.values() if session.direct.is_automatic}
        for key in self._places.keys() - keys:
            self._places[key].woken.set()
            if not self._places[key].is_inspecting:
                del self._places[key]
        for session in self._host.sessions.values():
            if session.direct.awaits_inspection:
                endpoint = session.record.endpoint
                self._begin(self._places.setdefault(endpoint.key, _Place(endpoint)))

    def _sessions(self, place: _Place) -> list[Session]:
        return [
            session
            for session in self._host.sessions.values()
            if session.direct.is_automatic and session.record.endpoint.key == place.endpoint.key
        ]

    def _begin(self, place: _Place) -> None:
        place.is_due = True
        place.woken.set()
        if not place.is_inspecting:
            place.is_inspecting = True
            self._host.spawn(self._inspect_while_due(place), "inspect networks")

    async def _inspect_while_due(self, place: _Place) -> None:
        failures = repeats = 0
        try:
            while place.is_due and (sessions := self._sessions(place)):
                place.is_due, is_settled = False, True
                place.woken.clear()
                began_s = time.monotonic()
                try:
                    is_settled = await self._inspect(place, {session.record.container_id for session in sessions})
                    failures = 0
                except Exception as error:
                    if not isinstance(error, AutoforwardError):
                        log.exception("a fault while the networks at %s were looked at", place.endpoint.host)
                    failures += 1
                    place.changed, place.is_due = None, True
                    for session in sessions:
                        session.direct.decide(
                            DirectPath(None, f"the engine does not say who shares its networks: {error}")
                        )
                took_s = time.monotonic() - began_s
                pause_s = delay_s(failures, local=True, chance=random.random()) if failures else PAUSE_S
                await asyncio.sleep(max(pause_s, min(10 * took_s, LONGEST_PAUSE_S)))
                if is_settled or place.is_due:
                    repeats = 0
                else:
                    repeats += 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(delay_s(repeats, local=False, chance=random.random())):
                            await place.woken.wait()
                    place.is_due = True
        finally:
            place.is_inspecting = False

    async def _inspect(self, place: _Place, targets: set[str]) -> bool:
        """Whether the result holds until the engine's next event: see NetworkInspector.is_settled."""
        in_use = self._host.engines.get(place.endpoint)
        if place.inspect is None or place.inspect.engine is not in_use.engine:
            place.inspect = NetworkInspector(in_use.engine)
        inspect, changed, place.changed = place.inspect, place.changed, set()
        found = await asyncio.get_running_loop().run_in_executor(in_use.pool, lambda: inspect.inspect(targets, changed))
        place.over = {key: over for key, (_, over) in found.items()}
        for session in self._sessions(place):
            if (answer := found.get(session.record.container_id)) is None:
                continue
            path, over = answer
            # A newcomer during the request may be missing from the answer.
            stale = place.changed is None or over in place.changed
            if session.direct.decide(STARTING if stale and path.address is not None else path):
                log.info("%s: direct path %s", session.record.container_name, session.direct)
        return inspect.is_settled

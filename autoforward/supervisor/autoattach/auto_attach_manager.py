"""All watches of `autoforward watch`, and the commands that hold them (`auto_attach.py` implements one watch).

A watch ends with its last command; if that vanished (killed, or with the supervisor), its sessions stay for `RETURN_S`,
so that a service manager can restart the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from autoforward.config.caller import CommandContext
from autoforward.config.container_filter import ContainerFilter
from autoforward.config.session_record import SessionRecord
from autoforward.core.errors import TargetError
from autoforward.core.model import EngineEndpoint
from autoforward.devcontainers.port_attributes import NO_RULES
from autoforward.engine.client import ContainerEvent
from autoforward.supervisor.autoattach.auto_attach import AutoAttach, WatchId
from autoforward.supervisor.autoattach.auto_attach import Host as WatchHost
from autoforward.supervisor.session.session import Session

log = logging.getLogger(__name__)

RETURN_S = 30.0
"""A service manager restarts a command within seconds. Longer would keep unwanted ports."""


class Host(WatchHost, Protocol):
    """What this module needs of the supervisor."""

    async def end_sessions(self, sessions: Iterable[Session], reason: str) -> None: ...
    def leave_engines(self) -> None: ...
    async def drain(self, forward_ids: frozenset[str], timeout_s: float) -> bool: ...
    def spawn(self, work: object, name: str) -> None: ...


class AutoAttachManager:
    """Commands call `join` and `leave`; the supervisor calls `expect`, `on_…` and `decline`. Owns its tasks: `close`."""

    def __init__(self, host: Host, quiet: Callable[[Session], None]) -> None:
        """`quiet` is called with sessions whose servers the user knows: they ran before the watch began."""
        self._host = host
        self._quiet = quiet
        self._watches: dict[WatchId, AutoAttach] = {}
        self._returns: dict[WatchId, asyncio.TimerHandle] = {}

    @property
    def engines(self) -> set[object]:
        """Engines followed for watches, by `EngineEndpoint.key`."""
        return {watch.endpoint.key for watch in self._watches.values()}

    def describe(self) -> list[dict[str, Any]]:
        """The watches in `status --json`."""
        return [
            {
                "selection": str(watch.selection),
                "engine": watch.endpoint.host,
                "commands": len(watch.commands),
                "sessions": len(self.sessions_of(watch.id)),
                "problem": watch.problem,
            }
            for watch in self._watches.values()
        ]

    # Commands.

    def join(
        self, endpoint: EngineEndpoint, selection: ContainerFilter, caller: CommandContext, declined: Mapping[str, str]
    ) -> AutoAttach:
        """The watch with this filter, started unless it exists. The engine is followed from now on."""
        new = AutoAttach(self._host, self._quiet, endpoint, selection, caller)
        if (timer := self._returns.pop(new.id, None)) is not None:
            timer.cancel()
        watch = self._watches.setdefault(new.id, new)
        watch.caller = caller
        watch.declined |= declined
        self._host.engines.renew(endpoint)
        self._host.engines.get(endpoint)
        watch.start()
        return watch

    def wait_for_return(self, watch_id: WatchId) -> None:
        """The last command has vanished: its sessions stay for a while."""
        if watch_id not in self._returns:
            loop = asyncio.get_running_loop()
            self._returns[watch_id] = loop.call_later(
                RETURN_S, lambda: self._host.spawn(self._expire(watch_id), "end of a watch")
            )

    async def end(self, watch_id: WatchId, drain_s: float) -> list[Session]:
        """End the watch and its own sessions, after their open connections; returns the ended sessions."""
        self._forget(watch_id)
        unwanted = [session for session in self.sessions_of(watch_id) if not await self._keep(session)]
        await self._host.drain(_forwards_of(unwanted), drain_s)
        await self._host.end_sessions(unwanted, "its watch ended")
        self._host.leave_engines()
        return unwanted

    async def cut(self, watch_id: WatchId) -> None:
        """Stop waiting for connections."""
        await self._host.drain(_forwards_of(self.sessions_of(watch_id)), 0.0)

    def sessions_of(self, watch_id: WatchId) -> list[Session]:
        """The sessions that only this watch wants."""
        return [one for one in self._host.sessions.values() if (one.record.endpoint.key, one.record.watch) == watch_id]

    def wants(self, watch_id: WatchId, container_id: str | None) -> bool:
        """Whether a container's session is one that only this watch wants."""
        return any(session.record.container_id == container_id for session in self.sessions_of(watch_id))

    def is_there(self, watch: AutoAttach) -> bool:
        """Whether it has not ended."""
        return self._watches.get(watch.id) is watch

    def others_of(self, watch: AutoAttach) -> list[Session]:
        """The selected sessions that another command began."""
        return [
            one
            for one in self._host.sessions.values()
            if one.record.endpoint.key == watch.endpoint.key
            and one.record.attached
            and one.record.watch != str(watch.selection)
            and one.info is not None
            and watch.selection.covers(one.info.labels)
        ]

    def close(self) -> None:
        """The supervisor ends: attach to nothing more; sessions stay for the next supervisor."""
        for watch_id in (*self._watches, *self._returns):
            self._forget(watch_id)

    # Events.

    def expect(self, record: SessionRecord) -> None:
        """A session begins. Its watch may be gone: with a killed supervisor, or a moment ago."""
        watch_id = (record.endpoint.key, record.watch)
        if record.watch is not None and watch_id not in self._watches:
            self.wait_for_return(watch_id)

    def decline(self, sessions: list[Session]) -> None:
        """The user detached these: skip them until they restart."""
        for watch in self._watches.values():
            watch.decline(sessions)

    def on_event(self, endpoint: EngineEndpoint, event: ContainerEvent | None) -> None:
        """None: events may have been missed."""
        for watch in self._watches.values():
            if watch.endpoint.key == endpoint.key:
                watch.on_event(event)

    def on_lost(self, endpoint: EngineEndpoint) -> None:
        """This engine's events are lost: check whether it is still there."""
        self.on_event(endpoint, None)

    def on_session_ended(self, session: Session, reason: str) -> None:
        for watch in self._watches.values():
            watch.on_session_ended(session, reason)

    # Ending.

    async def _expire(self, watch_id: WatchId) -> None:
        log.info("no command watches for %s any more", watch_id[1])
        await self.end(watch_id, 0.0)

    def _forget(self, watch_id: WatchId) -> None:
        if (timer := self._returns.pop(watch_id, None)) is not None:
            timer.cancel()
        watch = self._watches.pop(watch_id, None)
        if watch is not None:
            watch.close()

    async def _keep(self, session: Session) -> bool:
        """Whether something else wants it: another watch, or a `forward` of its ports."""
        labels = session.info.labels if session.info is not None else {}
        remaining = [
            watch
            for watch in self._watches.values()
            if watch.endpoint.key == session.record.endpoint.key and watch.selection.covers(labels)
        ]
        if remaining:
            session.record = replace(session.record, watch=str(remaining[0].selection))
        elif session.manual_specs or session.awaited:
            with contextlib.suppress(TargetError):  # it has just ended
                await session.reconfigure(
                    lambda record: replace(record, attached=False, watch=None, declared=(), rules=NO_RULES)
                )
        else:
            return False
        await self._host.store_session(session)
        return True


def _forwards_of(sessions: Sequence[Session]) -> frozenset[str]:
    return frozenset(key for session in sessions for key in session.forwarder.forward_ids)

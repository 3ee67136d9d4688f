"""Carry out what `desktop.decide` decides, event by event: open URLs at once, collect ports for notifications.

Control loop only; every call returns at once, and threads wait for the desktop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from autoforward.config.environment import SessionEnvironment
from autoforward.config.session_record import SessionRecord
from autoforward.desktop.decide import BACK_S, Shown, Situation, decide, is_back, may_open, notification
from autoforward.state.event_log import PortEvent

log = logging.getLogger(__name__)

COLLECT_S = 0.3
"""Ports that appear within this time of the first share a notification: a compose file or test suite opens many at once."""

NOTIFY_GAP_S = 2.0
"""Between two notifications of a session: a container must not flood the desktop."""


class ActingSession(Protocol):
    """What actions need of a session."""

    record: SessionRecord

    async def settled(self) -> None: ...


class Acts(Protocol):
    """The desktop, or its stand-in in tests."""

    def open_url(self, url: str, environment: SessionEnvironment) -> None: ...

    def show(self, title: str, body: str, environment: SessionEnvironment) -> None: ...


@dataclass(slots=True)
class _SessionNotices:
    """Pending notifications of one session, and what was done for it."""

    pending: dict[str, PortEvent] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    """By the forward's id: what was shown or opened, and is up or was a minute ago."""
    timer: asyncio.TimerHandle | None = None
    shown_at_s: float = float("-inf")
    opened_at_s: list[float] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)


class Actions:
    """`find` returns the session of a container id; `remember` stores what `openBrowserOnce` has opened."""

    def __init__(
        self,
        find: Callable[[str], ActingSession | None],
        remember: Callable[[ActingSession, str], None],
        desktop: Acts,
        platform: str = sys.platform,
    ) -> None:
        self._find = find
        self._remember = remember
        self._desktop = desktop
        self._platform = platform
        self._notices: dict[str, _SessionNotices] = {}
        self._restoring: dict[str, asyncio.Task[None]] = {}

    def restore(self, session: ActingSession) -> None:
        """A session from before this supervisor: the user knows the forwards of its first snapshot."""
        session_id = session.record.session_id
        task = asyncio.create_task(session.settled(), name=f"restoring {session_id}")
        task.add_done_callback(lambda _task: self._restoring.pop(session_id, None))
        self._restoring[session_id] = task

    def close(self) -> None:
        for task in list(self._restoring.values()):
            task.cancel()
        for notices in self._notices.values():
            if notices.timer is not None:
                notices.timer.cancel()
        self._notices.clear()

    def on_event(self, event: PortEvent) -> None:
        """Act on an event that was just written. Never raises."""
        session = self._find(event.container_id) if event.container_id else None
        if session is None:
            return
        session_id = session.record.session_id
        notices = self._notices.setdefault(session_id, _SessionNotices())
        match event.event:
            case "forwarded":
                self._on_forwarded(session, notices, event)
            case "updated" if event.process is not None and event.id in notices.shown:
                notices.shown[event.id] = Shown(event.process)
            case "unforwarded" | "waiting":
                notices.pending.pop(event.id or "", None)
                self._note_end(notices, event)
            case "detached":
                if notices.timer is not None:
                    notices.timer.cancel()
                del self._notices[session_id]

    @staticmethod
    def _note_end(notices: _SessionNotices, event: PortEvent) -> None:
        now_s = asyncio.get_running_loop().time()
        notices.shown = {
            key: shown
            for key, shown in notices.shown.items()
            if shown.gone_at_s is None or now_s - shown.gone_at_s <= BACK_S
        }
        if event.id in notices.shown:
            notices.shown[event.id] = Shown(notices.shown[event.id].process, now_s)

    def _on_forwarded(self, session: ActingSession, notices: _SessionNotices, event: PortEvent) -> None:
        record = session.record
        situation = Situation(
            environment=record.environment,
            platform=self._platform,
            attached=record.attached,
            restored=record.session_id in self._restoring,
            back=is_back(notices.shown.get(event.id or ""), event.process, asyncio.get_running_loop().time()),
            notify=record.options.notify,
            opened=frozenset(record.opened),
        )
        decision = decide(event, situation)
        if situation.back or situation.restored:
            before = notices.shown.get(event.id or "")
            notices.shown[event.id or ""] = Shown(event.process or (before.process if before else None))
        match decision.action:
            case "notify":
                notices.pending[event.id or ""] = event
                if notices.timer is None:
                    self._collect(session, notices)
            case "open":
                self._open(session, notices, event, decision.url, once=decision.once)
            case "nothing" if decision.why not in notices.reported:
                notices.reported.add(decision.why)  # one of a few fixed sentences: each is logged once per session
                log.debug("%s: nothing is opened or shown: %s", record.container_name, decision.why)

    def _open(
        self, session: ActingSession, notices: _SessionNotices, event: PortEvent, url: str, *, once: bool
    ) -> None:
        now_s = asyncio.get_running_loop().time()
        if not may_open(notices.opened_at_s, now_s):
            log.warning("%s: %s is not opened: too many were in the last minute", session.record.container_name, url)
            return
        notices.opened_at_s = [*notices.opened_at_s[-99:], now_s]
        if once and event.id is not None:
            self._remember(session, event.id)
        notices.shown[event.id or ""] = Shown(event.process)
        self._desktop.open_url(url, session.record.environment)

    def _collect(self, session: ActingSession, notices: _SessionNotices) -> None:
        loop = asyncio.get_running_loop()
        at_s = max(loop.time() + COLLECT_S, notices.shown_at_s + NOTIFY_GAP_S)
        notices.timer = loop.call_at(at_s, self._show, session, notices)

    def _show(self, session: ActingSession, notices: _SessionNotices) -> None:
        notices.timer = None
        events = list(notices.pending.values())
        notices.pending.clear()
        if events:
            notices.shown_at_s = asyncio.get_running_loop().time()
            notices.shown |= {event.id or "": Shown(event.process) for event in events}
            self._desktop.show(*notification(events), session.record.environment)

"""Carries out what `desktop.decide` decides, event by event: opens URLs at once, collects ports for notifications.

Everything runs on the control loop and returns at once; the desktop does the waiting.
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
"""What comes up within this time after the first is told together: a compose file or a test suite opens many at once."""

NOTIFY_GAP_S = 2.0
"""Between two notifications of a session: what a container does must not bury the desktop."""


class ActingSession(Protocol):
    """What is asked of a session."""

    record: SessionRecord

    async def settled(self) -> None: ...


class Acts(Protocol):
    """The desktop, or what stands for it in tests."""

    def open_url(self, url: str, environment: SessionEnvironment) -> None: ...

    def show(self, title: str, body: str, environment: SessionEnvironment) -> None: ...


@dataclass(slots=True)
class _Told:
    """What one session has to tell, and what has been done for it."""

    pending: dict[str, PortEvent] = field(default_factory=dict)
    shown: dict[str, Shown] = field(default_factory=dict)
    """By the forward's id: what was shown or opened, and is there or was a minute ago."""
    timer: asyncio.TimerHandle | None = None
    shown_at_s: float = float("-inf")
    opened_at_s: list[float] = field(default_factory=list)
    reported: set[str] = field(default_factory=set)


class Actions:
    """`find` gives the session of a container id; `remember` is told what `openBrowserOnce` has opened, to be stored."""

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
        self._told: dict[str, _Told] = {}
        self._restoring: dict[str, asyncio.Task[None]] = {}

    def restore(self, session: ActingSession) -> None:
        """A session that was there before this supervisor: what its first snapshot finds is not new to anybody."""
        session_id = session.record.session_id
        task = asyncio.create_task(session.settled(), name=f"restoring {session_id}")
        task.add_done_callback(lambda _task: self._restoring.pop(session_id, None))
        self._restoring[session_id] = task

    def close(self) -> None:
        for task in list(self._restoring.values()):
            task.cancel()
        for told in self._told.values():
            if told.timer is not None:
                told.timer.cancel()
        self._told.clear()

    def on_event(self, event: PortEvent) -> None:
        """Act on an event that has just been written. Never raises."""
        session = self._find(event.container_id) if event.container_id else None
        if session is None:
            return
        session_id = session.record.session_id
        told = self._told.setdefault(session_id, _Told())
        match event.event:
            case "forwarded":
                self._on_forwarded(session, told, event)
            case "updated" if event.process is not None and event.id in told.shown:
                told.shown[event.id] = Shown(event.process)
            case "unforwarded" | "waiting":
                told.pending.pop(event.id or "", None)
                self._note_end(told, event)
            case "detached":
                if told.timer is not None:
                    told.timer.cancel()
                del self._told[session_id]

    @staticmethod
    def _note_end(told: _Told, event: PortEvent) -> None:
        now_s = asyncio.get_running_loop().time()
        told.shown = {
            key: shown
            for key, shown in told.shown.items()
            if shown.gone_at_s is None or now_s - shown.gone_at_s <= BACK_S
        }
        if event.id in told.shown:
            told.shown[event.id] = Shown(told.shown[event.id].process, now_s)

    def _on_forwarded(self, session: ActingSession, told: _Told, event: PortEvent) -> None:
        record = session.record
        situation = Situation(
            environment=record.environment,
            platform=self._platform,
            attached=record.attached,
            restored=record.session_id in self._restoring,
            back=is_back(told.shown.get(event.id or ""), event.process, asyncio.get_running_loop().time()),
            notify=record.options.notify,
            opened=frozenset(record.opened),
        )
        decision = decide(event, situation)
        if situation.back or situation.restored:
            before = told.shown.get(event.id or "")
            told.shown[event.id or ""] = Shown(event.process or (before.process if before else None))
        match decision.action:
            case "notify":
                told.pending[event.id or ""] = event
                if told.timer is None:
                    self._collect(session, told)
            case "open":
                self._open(session, told, event, decision.url, once=decision.once)
            case "nothing" if decision.why not in told.reported:
                told.reported.add(decision.why)  # a few fixed sentences: each is said once for a session
                log.debug("%s: nothing is opened or shown: %s", record.container_name, decision.why)

    def _open(self, session: ActingSession, told: _Told, event: PortEvent, url: str, *, once: bool) -> None:
        now_s = asyncio.get_running_loop().time()
        if not may_open(told.opened_at_s, now_s):
            log.warning("%s: %s is not opened: too many were in the last minute", session.record.container_name, url)
            return
        told.opened_at_s = [*told.opened_at_s[-99:], now_s]
        if once and event.id is not None:
            self._remember(session, event.id)
        told.shown[event.id or ""] = Shown(event.process)
        self._desktop.open_url(url, session.record.environment)

    def _collect(self, session: ActingSession, told: _Told) -> None:
        loop = asyncio.get_running_loop()
        at_s = max(loop.time() + COLLECT_S, told.shown_at_s + NOTIFY_GAP_S)
        told.timer = loop.call_at(at_s, self._show, session, told)

    def _show(self, session: ActingSession, told: _Told) -> None:
        told.timer = None
        events = list(told.pending.values())
        told.pending.clear()
        if events:
            told.shown_at_s = asyncio.get_running_loop().time()
            told.shown |= {event.id or "": Shown(event.process) for event in events}
            self._desktop.show(*notification(events), session.record.environment)

"""The supervisor: all sessions of one user, in one detached process.

Phases: `start` (lock, registry, data plane, restored sessions, control socket), `serve` (until stopped or idle), `shut_down`
(bounded drain, end every forward, leave the sessions on disk for the next supervisor).
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TypeVar

import fasteners

from autoforward import __version__
from autoforward.config.approvals import Approvals, workspaces_of
from autoforward.config.session_record import SessionRecord, writers_of
from autoforward.control.server import ControlServer, Handler
from autoforward.core.errors import AutoforwardError
from autoforward.core.identity.labels import carries
from autoforward.core.model import EngineEndpoint
from autoforward.dataplane import messages
from autoforward.dataplane.plane import DataPlane
from autoforward.desktop.actions import ActingSession, Actions
from autoforward.desktop.launcher import Desktop
from autoforward.engine.client import ContainerEvent
from autoforward.engine.pool import EnginePool
from autoforward.forwards.allocator import Allocator
from autoforward.forwards.port_claims import PortClaims
from autoforward.state.document import current_process
from autoforward.state.event_log import EventLog
from autoforward.state.folder import StatePaths
from autoforward.state.locks import replace_file
from autoforward.state.missing_ends import log_missing_ends
from autoforward.supervisor.autoattach.auto_attach_manager import AutoAttachManager
from autoforward.supervisor.autoattach.compose_services import ComposeServices
from autoforward.supervisor.event_hub import EventHub
from autoforward.supervisor.network_watch import NetworkWatch
from autoforward.supervisor.notices import NoticeQueue
from autoforward.supervisor.persistence import Persistence
from autoforward.supervisor.session.config_reload import LiveConfiguration
from autoforward.supervisor.session.session import Session
from autoforward.supervisor.session.shared import SessionServices
from autoforward.supervisor.sleep_detector import ClockWatch
from autoforward.trust.writers import Writers

log = logging.getLogger(__name__)

INSTANCE_LOCK_TIMEOUT_S = 15.0
"""A predecessor that is shutting down holds the lock until it has drained."""

RESTORE_WAIT_S = 5.0
"""How long `list` waits for sessions that a new supervisor restores; then it shows them as they are."""

DRAIN_S = 5.0
CONTROL_CLOSE_S = 1.0

COUNT_S = 60.0
"""How often settled ports are recorded."""

DEFAULT_IDLE_EXIT_S = 60.0

MAX_WAITING = 256
"""Sessions of removed containers that wait for the next ones; the oldest go beyond this."""

AWAKE_TIMEOUT_S = 1.0
"""After a sleep of the machine: how long agents and watchers have to answer."""

T = TypeVar("T")


class Supervisor:
    """See the module. `serve_until_done` runs all phases; `handlers` returns the handlers of requests, by `op`."""

    def __init__(
        self,
        paths: StatePaths,
        handlers: Callable[[Supervisor], Mapping[str, Handler]],
        *,
        idle_exit_s: float = DEFAULT_IDLE_EXIT_S,
    ) -> None:
        self.paths = paths
        self.started_s = time.time()
        self.sessions: dict[str, Session] = {}
        self.claim_ids = itertools.count(1)
        self.foreground = 0
        self._handlers = handlers
        self._idle_exit_s = idle_exit_s
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._count_at_s = time.monotonic() + COUNT_S
        self._unsaid_openings: dict[str, SessionRecord] = {}
        self._restoring: list[asyncio.Task[None]] = []
        self._restored_by_s = 0.0
        self._lock = fasteners.InterProcessLock(str(paths.supervisor_lock))

    # Phases.

    async def serve_until_done(self, ready: Callable[[], None]) -> None:
        await self._start()
        try:
            ready()
            await self._stop.wait()
        finally:
            await self._shut_down()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if not await asyncio.to_thread(self._lock.acquire, timeout=INSTANCE_LOCK_TIMEOUT_S):
            raise AutoforwardError("another supervisor runs and does not answer")
        for number in (signal.SIGTERM, signal.SIGINT):
            self._heed(number, loop)
        notices = NoticeQueue(loop, self._on_notice)
        self.plane = DataPlane(notices.put, notices.is_long)
        self.persistence = Persistence(self.paths, self.sessions, self._warn)
        process = current_process()
        self.actions = Actions(self._session_of, self._remember_opened, Desktop())
        self.hub = EventHub(await asyncio.to_thread(self._open_event_log), self.actions.on_event)
        self.engines = EnginePool(self._on_engine_event, lambda endpoint: self.watches.on_lost(endpoint))
        self._allocator = Allocator(self.persistence.registry, process)
        self.services = functools.partial(
            SessionServices, self.plane, self._allocator, self.hub, self.persistence.thread, neighbours=PortClaims()
        )
        self.approvals = Approvals(self.paths)
        self.live = LiveConfiguration(
            self.sessions.values,
            self.store_session,
            self.hub.publish,
            self.approvals.consent_of,
        )
        self.siblings = ComposeServices(self)
        self.watches = AutoAttachManager(self, self.actions.restore)
        self.networks = NetworkWatch(self)
        self.plane.start()
        info = {"pid": process.pid, "pid_started": process.started, "version": __version__}
        records = await self.persistence.take_over()
        await self.persistence.run(lambda: self._write_info(info))
        self._restored_by_s = loop.time() + RESTORE_WAIT_S
        for record in records:
            session = self.add_session(record)
            session.forwarder.takes_up = True
            self.actions.restore(session)
            self._restoring.append(asyncio.create_task(session.settled(), name=f"restoring {record.session_id}"))
        self._clock = ClockWatch(self._on_clock_jump)
        self._clock.start()
        self._control = ControlServer(self.paths.supervisor_socket, self._handlers(self))
        await self._control.start()
        self.persistence.start_polling(self._check_folder)
        self.check_idle()
        log.info("supervisor %s started, pid %d, %d sessions restored", __version__, process.pid, len(self.sessions))

    async def _shut_down(self) -> None:
        log.info("supervisor ends: %s", self._stop_reason or "an error")
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._clock.close()
        for task in self._restoring:
            task.cancel()
        self._control.stop_accepting()
        self.watches.close()
        await self.live.aclose()
        await self.persistence.run(
            self.persistence.registry.check
        )  # the last chance to repair a registry from the live rows
        # The rows stay in the registry's sessions: the next supervisor takes them up again. Each session ends as soon as it
        # has no connection: a container that floods is heard no longer than that.
        await self._end_all(self.sessions.values(), "the supervisor ended", forget=False, drain_s=DRAIN_S)
        await self._end_all(
            self.sessions.values(), "the supervisor ended", forget=False
        )  # begun meanwhile by a command
        self.actions.close()
        self.engines.close()
        self.plane.stop()
        await self.persistence.stop_polling()
        await asyncio.to_thread(self.hub.close)
        # Subscribers have their last events; remaining connections are cut.
        await self._control.aclose(CONTROL_CLOSE_S)
        await self.persistence.aclose()
        self.paths.supervisor_info.unlink(missing_ok=True)
        self._lock.release()

    def _heed(self, number: signal.Signals, loop: asyncio.AbstractEventLoop) -> None:
        """Stop at this signal. Twice: the loop's own way is a byte in a pipe, which may be full."""
        reason = f"signal {number.name}"
        loop.add_signal_handler(number, self.stop, reason)
        signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(self.stop, reason))

    def stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    async def wait_restored(self) -> None:
        """Wait until the sessions restored at the start are settled, at most `RESTORE_WAIT_S` from the start.

        Later sessions are not waited for: their containers may take any time.
        """
        left_s = self._restored_by_s - asyncio.get_running_loop().time()
        waiting = [task for task in self._restoring if not task.done()]
        if waiting and left_s > 0:
            await asyncio.wait(waiting, timeout=left_s)

    async def drain(self, forward_ids: frozenset[str], timeout_s: float) -> bool:
        """Wait until the connections of these forwards have ended; False if they were cut at the deadline."""
        return await self.plane.drain(forward_ids, timeout_s)

    async def counters(self) -> dict[str, messages.ForwardCounters]:
        done: Future[dict[str, messages.ForwardCounters]] = Future()
        self.plane.submit(messages.ReadCounters(done))
        return await asyncio.wrap_future(done)

    # Sessions.

    def session_for(self, record: SessionRecord) -> Session | None:
        """The session for this record: of the same container (which may have another name), else of the same identity."""
        sessions = self.sessions.values()
        same = next((one for one in sessions if one.record.container_id == record.container_id), None)
        return same or next((one for one in sessions if one.record.identity == record.identity), None)

    def writers(self) -> Writers:
        return writers_of(session.record for session in self.sessions.values())

    def add_session(self, record: SessionRecord) -> Session:
        in_use = self.engines.get(record.endpoint)
        services = self.services(engine_pool=in_use.pool)
        session = Session(
            record, in_use.engine, services, self._on_session_ended, self._on_session_changed, self._on_session_moved
        )
        self.sessions[record.session_id] = session
        self.watches.expect(record)
        session.start()
        self.live.refresh()
        self.check_idle()
        return session

    async def store_session(self, session: ActingSession) -> None:
        """Write what the next supervisor needs; nothing for a session that only a foreground command holds."""
        await self.persistence.store(session.record)
        self.live.refresh()

    def saw(self, record: SessionRecord) -> None:
        """The user attached, or a watch met the workspace: soon store what it opens automatically."""
        if not self._unsaid_openings:
            self.spawn(self._remember_openings(), "remember what is opened by itself")
        self._unsaid_openings[record.session_id] = record

    async def _remember_openings(self) -> None:
        while records := list(self._unsaid_openings.values()):
            workspaces = await asyncio.to_thread(workspaces_of, records)
            openings = {
                workspace: record.sources.openings or ()
                for record, workspace in zip(records, workspaces, strict=True)
                if workspace is not None
            }
            try:
                await self.persistence.run(functools.partial(self.approvals.saw, openings))
            except AutoforwardError as error:  # the next attach asks about the new ones
                log.warning("%s", error)
            said = {id(record) for record in records}
            self._unsaid_openings = {key: one for key, one in self._unsaid_openings.items() if id(one) not in said}

    async def end_sessions(self, sessions: Iterable[Session], reason: str) -> None:
        await self._end_all(sessions, reason, forget=True)

    async def _end_all(self, sessions: Iterable[Session], reason: str, *, forget: bool, drain_s: float = 0.0) -> None:
        ending = list(sessions)
        if forget:
            await self.persistence.forget(session.record.session_id for session in ending)
        await asyncio.gather(*(session.end(reason, drain_s=drain_s) for session in ending))

    def _on_session_ended(self, session: Session, reason: str) -> None:
        """A session has ended, for any reason; if its container is gone, it is no longer stored."""
        log.info("session %s of %s ended: %s", session.record.session_id, session.record.container_name, reason)
        if self._stop.is_set():  # it stays stored, and nothing comes after it
            return
        self.sessions.pop(session.record.session_id, None)
        self.live.refresh()
        self.leave_engines()
        self.spawn(self.persistence.forget([session.record.session_id]), "forget a session")
        self.watches.on_session_ended(session, reason)
        self.siblings.on_session_ended(session)
        self.check_idle()

    def _on_session_changed(self) -> None:
        self.networks.on_session_changed()
        self.check_idle()

    def _on_session_moved(self, session: Session) -> None:
        """Its container was removed, replaced or renamed: update the stored record."""
        self.spawn(self.store_session(session), "store a session")
        self.watches.on_event(session.record.endpoint, None)
        waiting = sorted(
            (one for one in self.sessions.values() if one.record.removed), key=lambda one: one.record.removed or ""
        )
        if forgotten := waiting[: max(0, len(waiting) - MAX_WAITING)]:
            self.spawn(self.end_sessions(forgotten, "too many sessions wait for a container"), "forget sessions")

    def leave_engines(self) -> None:
        """Leave engines that no session needs."""
        self.engines.keep_only({one.record.endpoint.key for one in self.sessions.values()} | self.watches.engines)

    def check_idle(self) -> None:
        """Start or stop the timer that ends an idle supervisor."""
        busy = self.foreground or any(session.keeps_supervisor_alive for session in self.sessions.values())
        if busy and self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        elif not busy and self._idle_timer is None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(self._idle_exit_s, self._on_idle)

    def _on_idle(self) -> None:
        self._idle_timer = None
        if (
            self.persistence.registry.has_unwritten
        ):  # unwritten changes would be lost: keep running until the disk has room
            self.check_idle()
        else:
            self.stop("nothing to do")

    # Events.

    def _on_notice(self, notice: messages.PlaneEvent) -> None:
        match notice:
            case messages.StreamWanted(forward_id, relay_id):
                session = self._session_with(forward_id)
                if session is None:
                    self.plane.submit(messages.StreamFailed(relay_id, "the forward has ended"))
                else:
                    session.connections.on_stream_wanted(notice)
            case messages.MuxSaid(session_id):
                if (session := self.sessions.get(session_id)) is not None:
                    session.watching.on_mux_said(notice)
            case messages.MuxLost(session_id):
                if (session := self.sessions.get(session_id)) is not None:
                    session.watching.on_mux_lost(notice)
            case messages.PauseUnsure(session_id):
                if (session := self.sessions.get(session_id)) is not None:
                    session.watching.on_unsure()
            case messages.RelayStarted(session_id):
                if (session := self.sessions.get(session_id)) is not None:
                    session.connections.on_relay_started(notice)
            case messages.AddressAnswered(forward_id):
                if (session := self._session_with(forward_id)) is not None:
                    session.connections.on_address_answered(notice)
            case messages.KillWanted(session_id):
                if (session := self.sessions.get(session_id)) is not None:
                    session.connections.on_kill_wanted(notice)
            case messages.RelayEnded():
                # To all sessions: its forward may have ended before it.
                for session in self.sessions.values():
                    session.connections.on_relay_ended(notice)
            case messages.AcceptPaused(forward_id):
                if (session := self._session_with(forward_id)) is not None:
                    session.connections.on_accept_paused(notice)

    def _session_with(self, forward_id: str) -> Session | None:
        return next((s for s in self.sessions.values() if s.forwarder.key_of(forward_id) is not None), None)

    def _session_of(self, container_id: str) -> Session | None:
        return next((s for s in self.sessions.values() if s.record.container_id == container_id), None)

    def _remember_opened(self, session: ActingSession, forward_id: str) -> None:
        session.record = session.record.with_opened(forward_id)
        self.spawn(self.store_session(session), "store what was opened")

    def _on_engine_event(self, endpoint: EngineEndpoint, event: ContainerEvent | None) -> None:
        if self._stop.is_set():
            return
        if event is not None and event.action == "create":
            self._make_room(endpoint, event.container_id)
            return
        self.networks.on_event(endpoint, event)
        if event is not None and event.network_id is not None:
            return
        self.watches.on_event(endpoint, event)
        self.siblings.on_event(endpoint, event)
        for session in self.sessions.values():
            record = session.record
            if record.endpoint.key != endpoint.key:
                continue
            if event is None:  # a new event stream: events may have been missed
                session.recheck()
            elif event.container_id == record.container_id:
                session.notice_event(event)
            elif session.uses_network_of(event.container_id):
                session.notice_network()
            elif event.action == "start" and record.outlives_container and carries(event.labels, record.next_labels):
                session.recheck()

    def _make_room(self, endpoint: EngineEndpoint, container_id: str) -> None:
        """A container was created: the ports that it publishes are its own when it starts, not a stopped container's."""
        if endpoint.socket_path is None or not any(session.is_away for session in self.sessions.values()):
            return

        async def check() -> None:
            used = self.engines.get(endpoint)
            loop = asyncio.get_running_loop()
            numbers = await loop.run_in_executor(used.pool, used.engine.asks_for, container_id)
            for session in self.sessions.values():
                if numbers and session.is_away:
                    session.numbers_asked(numbers)

        self.spawn(check(), "host ports that a new container asks for")

    def _on_clock_jump(self, _seconds: float) -> None:
        """The machine was asleep. Replace what does not answer in time."""
        self.plane.submit(messages.MuxCheck(AWAKE_TIMEOUT_S))
        for session in self.sessions.values():
            session.check_streams(AWAKE_TIMEOUT_S)
        self.engines.reconnect()

    async def _check_folder(self) -> None:
        """Periodic check of the state folder."""
        await self.hub.flush()
        if self.sessions and time.monotonic() >= self._count_at_s:
            self._count_at_s = time.monotonic() + COUNT_S
            await self.persistence.run(self._allocator.count_time)
        if not await self.persistence.run(self._holds_its_folder):
            # No command can find it any more, and the folder in its place is another's to write: exit as if killed.
            log.error("the state folder was removed: this supervisor ends")
            os._exit(1)
        if not self._stop.is_set() and not self._control.is_found:
            try:
                await self.persistence.run(self.paths.ensure)
                await self._control.start()
            except (AutoforwardError, OSError) as error:
                log.debug("no control socket: %s", error)
            else:
                log.warning("the control socket was removed: made again")

    def _holds_its_folder(self) -> bool:
        held = os.fstat(self._lock.lockfile.fileno())
        try:
            there = self.paths.supervisor_lock.stat()
        except FileNotFoundError:
            return False
        except OSError:  # another, possibly passing error
            return True
        return os.path.samestat(held, there)

    # Helpers.

    def spawn(self, work: object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s: %s", task.get_name(), error)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)

    def _open_event_log(self) -> EventLog:
        """With the ends that a killed predecessor did not write."""
        events = EventLog(self.paths, self._warn)
        if count := log_missing_ends(self.paths, events):
            log.info("the supervisor before this one was killed: %d ends are told for it", count)
        return events

    def _write_info(self, info: dict[str, object]) -> None:
        try:
            replace_file(self.paths.supervisor_info, [json.dumps(info).encode()])
        except OSError as error:  # nothing depends on this file, so a full disk does not stop forwarding
            self._warn(f"cannot write {self.paths.supervisor_info}: {error.strerror}")

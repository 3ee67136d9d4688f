"""One session: the supervisor's work for one container, over all its restarts.

A session is an actor: one task takes what comes in (frames, container events, commands) one after the other, so that
nothing changes between deciding and doing. `life` is its state machine; `inbox` is what it waits on. Opening streams for
client connections goes beside the actor (`open_stream`), for they must not wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

from autoforward.close_wait import CloseWaitTracker
from autoforward.detector import Detector
from autoforward.engine import ContainerEvent, Engine
from autoforward.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.forwarder import LOOPBACK, RETRY_FAILED_S, Forwarder, Place, Services
from autoforward.lanes.commands import RelayTool, relay_argv
from autoforward.lanes.probe import NoLane, choose_lane
from autoforward.lanes.scripts import relay_environment, watcher_argv
from autoforward.lanes.watcher import Answer, Frame, Sockets, encode_kill, encode_sockets
from autoforward.messages import (
    ForwardCounters,
    KillWanted,
    RelayEnded,
    RelayPlan,
    RelayStarted,
    ServerClosed,
    StreamFailed,
    StreamReady,
    StreamWanted,
)
from autoforward.model import ContainerInfo, ForwardKey, PortSpec, Snapshot
from autoforward.policy import WITHDRAWAL_GRACE_S, Seen, SessionRules, plan
from autoforward.probing import NoShellError, probe_container
from autoforward.procnet import snapshot_from_rows
from autoforward.settings import SessionRecord, merge_specs
from autoforward.streams import SocketStream

log = logging.getLogger(__name__)

HOLD_S = 10.0
"""How long a new connection waits while the container is out of reach; and how long a restarted container's servers
have to come back before their ports are withdrawn."""

BACKOFF_S = (0.2, 0.4, 0.8, 1.6, 2.0)
"""Between attempts to watch a container that should be running; the last one repeats."""

DORMANT_AFTER_S = 300.0
"""A container stopped for this long keeps neither its host ports nor the supervisor."""

State = Literal["starting", "watching", "reconnecting", "stopped", "dormant", "failed", "ended"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionServices(Services):
    """`engine_pool` runs what blocks on the engine; at most that many processes are started at once."""

    engine_pool: Executor


@dataclass(frozen=True, slots=True)
class _Command:
    action: Callable[[], Awaitable[Any]]
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Lost:
    detector: Detector
    reason: str


class _Restart(Exception):  # noqa: N818  # control flow, not an error
    """The watch has to begin again: other container, other lane, other interval."""


class Session:
    """Start it with `start`, end it with `end`; both once. `record` is what is stored."""

    def __init__(
        self,
        record: SessionRecord,
        engine: Engine,
        services: SessionServices,
        on_ended: Callable[[Session, str], None],
    ) -> None:
        self.record = record
        self.engine = engine
        self.state: State = "starting"
        self.problem: str | None = None
        self.tool: RelayTool | None = None
        self.forwarder = Forwarder(services, self._place(record))
        self._services = services
        self._on_ended = on_ended
        self._inbox: asyncio.Queue[Frame | _Lost | ContainerEvent | _Command] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._end_reason = ""
        self._settled = asyncio.Event()
        self._reachable = asyncio.Event()
        self._claims: dict[int, tuple[PortSpec, ...]] = {}
        self._stopped_keys: set[ForwardKey] = set()
        self._info: ContainerInfo | None = None
        self._detector: Detector | None = None
        self._session_token = ""
        self._tracker = CloseWaitTracker()
        self._relay_ports: dict[int, frozenset[int]] = {}
        self._snapshot: Snapshot = ()
        self._seen: dict[ForwardKey, Seen] = {}
        self._recheck_at_s: float | None = None

    def __repr__(self) -> str:
        return f"<Session {self.record.session_id} {self.record.container_name} {self.state}>"

    # The supervisor's side.

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"session {self.record.container_name}")

    async def end(self, reason: str) -> None:
        """End it and every forward of it; returns when the listeners are closed and the events are written."""
        self._end_reason = self._end_reason or reason
        self._ending.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def wait_ended(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    def rows(self, counters: Mapping[str, ForwardCounters]) -> list[dict[str, Any]]:
        """`list --json` rows of its forwards, and of the ports that are not forwarded."""
        return list(self.forwarder.rows(self.record.target, self.tool.lane if self.tool else None, counters))

    def describe(self) -> dict[str, Any]:
        """Its part of `status --json`."""
        record, tool = self.record, self.tool
        return {
            "id": record.session_id,
            "target": record.target,
            "container_id": record.container_id,
            "container_name": record.container_name,
            "workspace": record.workspace_folder,
            "engine": record.endpoint.host,
            "state": self.state,
            "problem": self.problem,
            "attached": record.attached,
            "forwards": len(self.forwarder.forward_ids),
            "lane": None if tool is None else {"name": tool.lane, "dialect": tool.dialect, **asdict(tool.capabilities)},
        }

    async def settled(self) -> None:
        """Wait until a first snapshot has been applied, or it is known why there is none."""
        await self._settled.wait()

    @property
    def keeps_supervisor_alive(self) -> bool:
        return self.state not in ("dormant", "ended")

    @property
    def manual_specs(self) -> tuple[PortSpec, ...]:
        specs = self.record.manual
        for claim in self._claims.values():
            specs = merge_specs(specs, claim)
        return specs

    @property
    def wanted(self) -> bool:
        """Whether anybody still wants anything of this session."""
        return self.record.attached or bool(self.record.manual) or bool(self._claims)

    def notice_event(self, event: ContainerEvent) -> None:
        """The engine said something about this container, or may have failed to."""
        self._inbox.put_nowait(event)

    async def update(self, record: SessionRecord) -> None:
        """Take over new options, ports and container; returns once they are in force."""

        async def change() -> None:
            before, self.record = self.record, record
            self._stopped_keys.clear()
            await self.forwarder.move_to(self._place(record))
            rewatch = (
                before.container_id != record.container_id
                or before.options.lane != record.options.lane
                or before.options.poll_interval_s != record.options.poll_interval_s
                or self.state != "watching"
                or self.tool is None
            )
            if rewatch:
                self._settled.clear()
                raise _Restart
            await self._replan()

        await self._execute(change)
        await self.settled()

    async def claim(self, claim_id: int, specs: tuple[PortSpec, ...]) -> None:
        """Forward these for as long as the claim is held."""

        async def change() -> None:
            self._claims[claim_id] = specs
            self._stopped_keys.difference_update(spec.key for spec in specs)
            await self._replan()

        await self._execute(change)

    async def release_claim(self, claim_id: int) -> None:
        async def change() -> None:
            if self._claims.pop(claim_id, None) is not None:
                await self._replan()

        if not self._ending.is_set():
            await self._execute(change)

    async def stop_forward(self, forward_id: str) -> bool:
        """End one forward for good: it comes back with the next `attach`, not with the next snapshot."""

        async def change() -> bool:
            key = self.forwarder.key_of(forward_id)
            if key is None:
                return False
            self._stopped_keys.add(key)
            manual = tuple(spec for spec in self.record.manual if spec.key != key)
            self.record = replace(self.record, manual=manual)
            await self.forwarder.close_one(key, "stopped by the user")
            return True

        return bool(await self._execute(change))

    async def _execute(self, action: Callable[[], Awaitable[T]]) -> T:
        """Run `action` as the actor. Raises what it raises; TargetError when the session ends first."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait(_Command(action, done))
        ended = asyncio.ensure_future(self._ending.wait())
        waiting: list[asyncio.Future[Any]] = [done, ended]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if not done.done():
            done.cancel()
            raise TargetError(f"the session of {self.record.container_name} ended: {self._end_reason}")
        return done.result()

    # Notices of the data plane.

    def on_stream_wanted(self, notice: StreamWanted) -> None:
        task = asyncio.create_task(self.open_stream(notice), name=f"stream for relay {notice.relay_id}")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def on_relay_started(self, notice: RelayStarted) -> None:
        ports = self._relay_ports.get(notice.relay_id)
        if ports is not None and self.tool is not None and self.tool.needs_close_wait:
            self._tracker.started(notice.relay_id, notice.container_pid, notice.relay_token, ports)

    def on_relay_ended(self, notice: RelayEnded) -> None:
        self._relay_ports.pop(notice.relay_id, None)
        self._tracker.ended(notice.relay_id)
        self.forwarder.note_refusal(notice.forward_id, notice.reason if notice.refused else None)
        if notice.refused:
            log.info(
                "%s %s: a connection was refused: %s", self.record.container_name, notice.forward_id, notice.reason
            )

    def on_kill_wanted(self, notice: KillWanted) -> None:
        if self._detector is not None:
            self._detector.send(encode_kill(notice.container_pid, notice.relay_token, hard=notice.hard))

    async def open_stream(self, wanted: StreamWanted) -> None:
        """Get the stream that a client connection needs, waiting a bounded time for a container that is away."""
        plane = self._services.plane
        try:
            async with asyncio.timeout(HOLD_S):
                await self._reachable.wait()
        except TimeoutError:
            plane.submit(StreamFailed(wanted.relay_id, f"the container was out of reach for {HOLD_S:.0f} s"))
            return
        dials, tool, token = self.forwarder.dials_of(wanted.forward_id), self.tool, secrets.token_hex(16)
        if dials is None or tool is None:
            plane.submit(StreamFailed(wanted.relay_id, self.problem or "the forward has ended"))
            return
        self._relay_ports[wanted.relay_id] = frozenset(dial.port for dial in dials)
        relay_plan = RelayPlan(self.record.session_id, token, tool, len(dials))
        container_id, environment = self.record.container_id, relay_environment(token, self._session_token)
        try:
            argv = relay_argv(tool, dials)
            stream = await self._in_pool(lambda: self.engine.open_exec(container_id, argv, environment))
        except (AutoforwardError, ValueError) as error:
            self._relay_ports.pop(wanted.relay_id, None)
            plane.submit(StreamFailed(wanted.relay_id, str(error)))
            return
        plane.submit(StreamReady(wanted.relay_id, stream, relay_plan))

    async def _in_pool(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._services.engine_pool, job)

    # The actor.

    async def _live(self) -> None:
        try:
            await self._services.publisher.publish(self.forwarder.session_event("attached"))
            await self._watch_for_ever()
        except TargetError as error:
            self._end_reason = self._end_reason or str(error)
        except _Ending:
            pass
        finally:
            self._ending.set()
            await self._wind_up()

    async def _wind_up(self) -> None:
        reason = self._end_reason or "the session ended"
        self._drop_detector()
        await self.forwarder.close_all(reason)
        for task in self._opening:
            task.cancel()
        self.state = "ended"
        self.problem = self.problem or reason
        await self._services.publisher.publish(self.forwarder.session_event("detached", reason))
        self._settled.set()
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, _Command) and not item.done.done():
                item.done.set_exception(TargetError(f"the session ended: {reason}"))
        self._on_ended(self, reason)

    async def _watch_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                info = await self._call_engine(lambda: self.engine.inspect(self.record.container_id))
                if not info.running:
                    await self._wait_for_start(info)
                    failures = 0
                    continue
                await self._watch(info)
                failures = 0
            except _Restart:
                self._drop_detector()
                failures = 0
                continue
            except TargetError as error:
                raise TargetError(f"the container {self.record.container_name} is gone") from error
            except NoShellError as error:
                await self._give_up(str(error))
                failures = 0
                continue
            except AutoforwardError as error:
                log.info("%s: %s", self.record.container_name, error)
                failures += 1
                # The first loss is often over by the next attempt; only then it is worth a word.
                if failures > 1 or isinstance(error, EngineUnreachableError):
                    await self._become("reconnecting", str(error))
                if failures > 3:
                    self._settled.set()
            await self._idle(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else 0.0)

    async def _call_engine(self, job: Callable[[], T]) -> T:
        """Run a blocking engine call; the end of the session does not wait for it (a stream that comes late is closed)."""
        call = asyncio.ensure_future(self._in_pool(job))
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait([call, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if call.done():
            return call.result()
        call.add_done_callback(_close_late_stream)
        raise _Ending

    async def _next(self, timeout_s: float | None) -> Frame | _Lost | ContainerEvent | None:
        """What comes next, None after the timeout. Commands are carried out here. Raises _Ending, _Restart."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            getting = asyncio.ensure_future(self._inbox.get())
            ending = asyncio.ensure_future(self._ending.wait())
            remaining_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            await asyncio.wait([getting, ending], timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if self._ending.is_set():
                getting.cancel()
                raise _Ending
            if not getting.done():
                getting.cancel()
                return None
            item = getting.result()
            if not isinstance(item, _Command):
                return item
            await self._carry_out(item)

    async def _carry_out(self, command: _Command) -> None:
        if command.done.done():  # whoever asked has gone
            return
        try:
            result = await command.action()
        except _Restart:
            command.done.set_result(None)
            raise
        except AutoforwardError as error:
            command.done.set_exception(error)
        else:
            if not command.done.done():
                command.done.set_result(result)

    async def _idle(self, delay_s: float) -> None:
        """Wait between attempts; an event of the container ends the wait."""
        deadline_s = time.monotonic() + delay_s
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            item = await self._next(remaining_s)
            if isinstance(item, ContainerEvent):
                return

    async def _wait_for_start(self, info: ContainerInfo) -> None:
        """The container is not running: keep the ports for a while, then only the leases, until it starts."""
        self._drop_detector()
        await self._become("stopped" if info.state != "paused" else "reconnecting", f"the container is {info.state}")
        self._settled.set()
        deadline_s = time.monotonic() + DORMANT_AFTER_S
        while True:
            remaining_s = max(0.0, deadline_s - time.monotonic()) if self.state != "dormant" else None
            item = await self._next(remaining_s)
            if item is None:
                await self.forwarder.close_all(f"the container has been {info.state} for a long time")
                self.state = "dormant"
            elif isinstance(item, ContainerEvent):
                return  # look at it again: the event may be old

    async def _give_up(self, reason: str) -> None:
        """Nothing can run in this container as it is: wait for it to be started anew."""
        await self._become("failed", reason)
        self._settled.set()
        while not isinstance(await self._next(None), ContainerEvent):
            pass

    async def _become(self, state: State, problem: str) -> None:
        self.state, self.problem = state, problem
        self._reachable.clear()
        await self.forwarder.suspend(problem)

    # Watching.

    async def _watch(self, info: ContainerInfo) -> None:
        """Watch until the watcher is lost. Returns after a loss that follows a time of working; raises otherwise."""
        self._info = info
        restarted = bool(self._seen)
        self.record = self.record.in_container(info)
        await self.forwarder.move_to(self._place(self.record))
        probe = await self._call_engine(lambda: probe_container(self.engine, info.container_id))
        choice = choose_lane(probe, self.record.options.lane)
        if isinstance(choice, NoLane):
            self.tool, self.problem = None, f"no lane works in this container: {choice.reason}"
        else:
            self.tool, self.problem = choice, None
        token = secrets.token_hex(16)
        argv = watcher_argv(
            token,
            self.record.options.poll_interval_s,
            close_wait=self.tool is not None and self.tool.needs_close_wait,
        )
        stream: SocketStream = await self._call_engine(lambda: self.engine.open_exec(info.container_id, argv, {}))
        detector = Detector(
            stream, self._inbox.put_nowait, self._on_answer, lambda reason: self._on_lost(detector, reason)
        )
        self._detector, self._session_token, self._tracker = detector, token, CloseWaitTracker()
        if restarted:
            self._extend_grace()
        try:
            detector.start()
            await self._follow(detector)
        finally:
            self._drop_detector()

    async def _follow(self, detector: Detector) -> None:
        frames = 0
        retry_at_s: float | None = None
        while True:
            now_s = time.monotonic()
            if self.forwarder.has_failures:
                retry_at_s = retry_at_s or now_s + RETRY_FAILED_S
            else:
                retry_at_s = None
            dues = [due for due in (self._recheck_at_s, retry_at_s) if due is not None]
            item = await self._next(max(0.0, min(dues) - now_s) if dues else None)
            match item:
                case Frame():
                    frames += 1
                    await self._take_frame(item, first=frames == 1)
                case _Lost(lost, reason) if lost is detector:
                    self._reachable.clear()
                    if frames:
                        log.info("%s: the watch was lost: %s", self.record.container_name, reason)
                        return
                    raise AutoforwardError(f"the watch on the container failed: {reason}")
                case ContainerEvent():
                    await self._take_event(item)
                case None:
                    if retry_at_s is not None and time.monotonic() >= retry_at_s:
                        retry_at_s = None
                        await self.forwarder.retry_failed(self._host_ip)
                    await self._replan()

    async def _take_frame(self, frame: Frame, *, first: bool) -> None:
        addresses = self._info.addresses if self._info else ()
        self._snapshot = snapshot_from_rows(frame.table.rows, addresses)
        if first:
            self.state = "watching"
            self._reachable.set()
            await self.forwarder.resume()
        await self._replan()
        if first:
            self._settled.set()
        if self.tool is not None and self.tool.needs_close_wait:
            closed, questions = self._tracker.frame(frame.table.close_wait)
            self._tell_closed(closed)
            for container_pid, relay_token in questions:
                if self._detector is not None:
                    self._detector.send(encode_sockets(container_pid, relay_token))

    async def _take_event(self, event: ContainerEvent) -> None:
        if event.action == "pause":
            await self._become("reconnecting", "the container is paused")
        elif event.action == "unpause" and self.state == "reconnecting":
            self.state, self.problem = "watching", None
            self._reachable.set()
            await self.forwarder.resume()
            if self._detector is not None:
                self._detector.ping_now()
        elif event.action == "rename" and event.name:
            self.record = replace(self.record, container_name=event.name)
            await self.forwarder.move_to(self._place(self.record))

    def _on_answer(self, answer: Answer) -> None:
        if isinstance(answer, Sockets):
            self._tell_closed(self._tracker.answer(answer.pid, answer.inodes))

    def _tell_closed(self, relay_ids: list[int]) -> None:
        for relay_id in relay_ids:
            self._services.plane.submit(ServerClosed(relay_id))

    def _on_lost(self, detector: Detector, reason: str) -> None:
        self._inbox.put_nowait(_Lost(detector, reason))

    def _drop_detector(self) -> None:
        detector, self._detector = self._detector, None
        self._reachable.clear()
        if detector is not None:
            detector.close()

    def _extend_grace(self) -> None:
        """Servers of a container that was away may take a while to come back: their ports wait for them."""
        until_s = time.monotonic() + HOLD_S - WITHDRAWAL_GRACE_S
        self._seen = {key: Seen(seen.addresses, until_s) for key, seen in self._seen.items()}

    # Deciding.

    @property
    def _host_ip(self) -> str:
        return self.record.options.bind or LOOPBACK

    async def _replan(self) -> None:
        """Decide from what is known now, and carry it out. Not before a snapshot is known, nor while the container is away."""
        if self.state != "watching":
            return
        wanted = plan(self._rules(), self._snapshot, self._seen, time.monotonic())
        self._seen = dict(wanted.seen)
        self._recheck_at_s = wanted.recheck_at_s
        self._stopped_keys = {key for key in self._stopped_keys if key in wanted.seen or self._is_named(key)}
        await self.forwarder.apply(wanted, self._host_ip)

    def _is_named(self, key: ForwardKey) -> bool:
        return any(spec.key == key for spec in (*self.record.declared, *self.manual_specs))

    def _rules(self) -> SessionRules:
        record, info = self.record, self._info
        return SessionRules(
            auto=record.attached and record.options.auto,
            declared=record.declared if record.attached else (),
            manual=self.manual_specs,
            attributes=record.rules,
            exclude=record.options.exclude,
            published=info.published if info else (),
            host_network=info is not None and info.network_mode == "host",
            stopped=frozenset(self._stopped_keys),
            blocked=None if self.tool is not None else self.problem,
            udp=self.tool is not None and self.tool.capabilities.udp,
        )

    @staticmethod
    def _place(record: SessionRecord) -> Place:
        return Place(
            str(record.identity), record.container_id, record.container_name, record.workspace_folder, record.service
        )


class _Ending(Exception):  # noqa: N818  # control flow, not an error
    """The session is to end."""


def _close_late_stream(call: asyncio.Future[Any]) -> None:
    if not call.cancelled() and call.exception() is None and isinstance(call.result(), SocketStream):
        call.result().shutdown_write()
        call.result().close()

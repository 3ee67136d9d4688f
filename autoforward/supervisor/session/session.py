"""One session: the supervisor's work for one container, over all its restarts.

A session is an actor (`actor.py`): one task takes what comes in (frames, container events, commands) one after the other.
Its phases are plain code: look at the container, wait until it runs, watch it until the watch is lost, again. Client
connections go beside it (`openings.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from autoforward.config.metadata import metadata_of, moved
from autoforward.config.session_record import SessionRecord, merge_specs, told_apart
from autoforward.core.backoff import SHOWN_AS_FAILED_AFTER, delay_s
from autoforward.core.budget import LEFT_ALONE_S, Budget, OverBudgetError, plan_cost
from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError
from autoforward.core.identity.labels import LABEL_METADATA
from autoforward.core.model import ContainerInfo, ForwardKey, PortSpec, Snapshot
from autoforward.dataplane.messages import ForwardCounters
from autoforward.detection.proc_net import snapshot_from_rows
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.engine.targets import container_after
from autoforward.forwards.forwarder import RETRY_FAILED_S, Forwarder
from autoforward.forwards.plan import ObservedPort, plan
from autoforward.forwards.rows import LOOPBACK, Place
from autoforward.forwards.session_rules import SessionClaims, rules_of
from autoforward.lanes.probing import NoShellError
from autoforward.lanes.relay_tools import RelayTool
from autoforward.lanes.watcher_protocol import Frame
from autoforward.state.document import format_time, parse_time
from autoforward.supervisor.session import lane_choice
from autoforward.supervisor.session.actor import FAULT, Actor, Ending, Restart
from autoforward.supervisor.session.crash_loop_guard import WORKED_S
from autoforward.supervisor.session.direct_switch import DirectSwitch
from autoforward.supervisor.session.openings import Connections
from autoforward.supervisor.session.session_states import SESSION, State
from autoforward.supervisor.session.shared import SessionServices
from autoforward.supervisor.session.telling import MeteredPublisher
from autoforward.trust.widening import not_granted

log = logging.getLogger(__name__)

SETTLED_AFTER_S = 10.0
"""An attempt that fails after more than this is answer enough for a command that waits."""

DORMANT_AFTER_S = 300.0
"""A container stopped, or removed, for this long keeps neither its host ports nor the supervisor."""

FORGOTTEN_AFTER_S = 30 * 86400.0
"""So long it is waited for the next container of a workspace or service."""

STOPPED = "stopped by the user"
"""The reason of a forward's end that a foreground `forward` takes as its own."""

T = TypeVar("T")


class Session:
    """Start it with `start`, end it with `end`; both once. `record` is what is stored."""

    def __init__(
        self,
        record: SessionRecord,
        engine: Engine,
        services: SessionServices,
        on_ended: Callable[[Session, str], None],
        on_change: Callable[[], None],
        on_moved: Callable[[Session], None] = lambda _session: None,
    ) -> None:
        """`on_moved`: its container was removed, or it goes on in the next one; what is stored has to follow."""
        self.record = record
        self.engine = engine
        self._state: State = "starting"
        self.problem: str | None = None
        self.config_problem: str | None = None
        now_s = time.monotonic()
        self._plans = Budget(services.limits.plans, now_s)
        self._attempts = Budget(services.limits.attempts, now_s)
        self._publisher = MeteredPublisher(services.publisher, services.limits.events, now_s)
        services = replace(services, publisher=self._publisher)
        self._slowed_told = False
        self._cost_told = ""
        self.forwarder = Forwarder(services, self._place(record))
        self.connections = Connections(record.session_id, engine, services, self.forwarder)
        self._services = services
        self._limits = services.limits
        self._on_ended = on_ended
        self._on_change = on_change
        self._on_moved = on_moved
        self._actor: Actor[lane_choice.Item] = Actor(record.container_name, lane_choice.place_of, self._engine_is_slow)
        self.watching = lane_choice.LaneChooser(
            record.session_id, engine, services, self._actor, self.connections, self.forwarder
        )
        self._beside = SessionClaims(services.neighbours, lambda: self._actor.tell(lane_choice.NeighboursChanged()))
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._claims: dict[int, tuple[PortSpec, ...]] = {}
        self.awaited = 0
        """Commands that are about to claim ports of it."""
        self._stopped_keys: set[ForwardKey] = set()
        self.info: ContainerInfo | None = None
        self._snapshot: Snapshot = ()
        self._seen: dict[ForwardKey, ObservedPort] = {}
        self._recheck_at_s: float | None = None
        self._stopped_at_s: float | None = None
        self._is_paused = False
        self._next_try_s: float | None = None
        self._drained_by_s = 0.0

    def __repr__(self) -> str:
        return f"<Session {self.record.session_id} {self.record.container_name} {self.state}>"

    # The supervisor's side.

    def start(self) -> None:
        self._task = asyncio.create_task(self._live(), name=f"session {self.record.container_name}")

    async def end(self, reason: str, *, drain_s: float = 0.0) -> None:
        """End it and every forward of it; returns when the listeners are closed and the events are written.

        From now on nothing that the container does is followed. Open connections have `drain_s` to end by themselves.
        """
        self._drained_by_s = time.monotonic() + drain_s
        self._actor.end(reason)
        if self._task is not None:
            await asyncio.wait([self._task])

    async def wait_ended(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    def rows(self, counters: Mapping[str, ForwardCounters]) -> list[dict[str, Any]]:
        """`list --json` rows of its forwards, of the ports that are not forwarded, and of what is not granted."""
        record = self.record
        asked = not_granted(record.requests, record.way_out)
        return list(self.forwarder.rows(record.target, self.tool.lane if self.tool else None, counters, asked))

    @property
    def next_try_in_s(self) -> float | None:
        """How long until the next attempt; None while none is waited for."""
        return None if self._next_try_s is None else max(0.0, self._next_try_s - time.monotonic())

    async def settled(self) -> None:
        """Wait until a first snapshot has been applied, or it is known why there is none."""
        await self._settled.wait()

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = SESSION.to(self._state, state)
        self._on_change()

    @property
    def tool(self) -> RelayTool | None:
        """What carries its connections; None while nothing can."""
        return self.connections.tool

    @property
    def direct(self) -> DirectSwitch:
        """Whether its connections may go past the engine."""
        return self.watching.direct

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
        return self.record.attached or bool(self.record.manual) or bool(self._claims) or self.awaited > 0

    def uses_network_of(self, container_id: str) -> bool:
        return self.info is not None and self.info.network_of == container_id

    def notice_network(self) -> None:
        """Something happened to the container whose network this one uses: what the engine publishes may be another one's."""
        self._actor.tell(lane_choice.NetworkChanged())

    def notice_event(self, event: ContainerEvent) -> None:
        """The engine said something about this container, or may have failed to."""
        self._actor.tell(event)

    def recheck(self) -> None:
        """Something may have become of its container, or another one may have come after it."""
        self.notice_event(ContainerEvent("recheck", self.record.container_id, self.record.container_name, {}))

    @property
    def is_away(self) -> bool:
        """Whether its container does not run, and its host ports are held."""
        return self.state == "stopped"

    def numbers_asked(self, numbers: frozenset[tuple[str, int]]) -> None:
        """Another container publishes them as soon as it starts."""
        self._actor.tell(lane_choice.NumbersAsked(numbers))

    def check_streams(self, timeout_s: float) -> None:
        """The machine was asleep: is the watcher still there? (The agent is asked by the data plane.)"""
        self.watching.ping_now(timeout_s)

    async def update(self, record: SessionRecord) -> None:
        """Take over new options, ports and container; returns once they are in force."""

        async def change() -> None:
            self._stopped_keys.clear()
            await self._take_over(replace(record, opened=self.record.opened))

        await self._actor.execute(change)
        await self.settled()

    async def reconfigure(self, change: Callable[[SessionRecord], SessionRecord], *, at_once: bool = False) -> bool:
        """Take over what `change` makes of the record as it is then; whether that is another one.

        Does not wait for a watch, nor, unless `at_once` (it is the user's word), for what follows from it, which has its
        turn when the session's budget allows.
        """

        async def take_over() -> bool:
            if (record := change(self.record)) == self.record:
                return False
            await self._take_over(record, at_once=at_once)
            return True

        # A Restart, which answers nothing, comes after the record was taken over.
        return await self._actor.execute(take_over) is not False

    async def _take_over(self, record: SessionRecord, *, at_once: bool = True) -> None:
        before, self.record = self.record, record
        before.options.forget_searches(kept=record.options)
        await self.forwarder.move_to(self._place(record))
        repaced = before.options.poll_interval_s != record.options.poll_interval_s
        rewatch = (
            before.container_id != record.container_id
            or (before.options.lane, before.options.direct) != (record.options.lane, record.options.direct)
            or self.state != "watching"
            or self.tool is None
        )
        if rewatch or (repaced and not self.watching.set_pace(record.options.poll_interval_s)):
            self._settled.clear()
            raise Restart
        if at_once:
            await self._replan()
        else:
            self._actor.tell(lane_choice.ConfigurationChanged())

    def told_apart(self, specs: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
        """These as they are beside what there is: a port that has a forward on another number gets a further one."""
        numbers = {spec.key: spec.number for spec in self.manual_specs}
        return told_apart(specs, {**numbers, **self.forwarder.numbers})

    async def claim(self, claim_id: int, asked: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
        """Forward these for as long as the claim is held; returns them told apart from what there was."""

        async def change() -> tuple[PortSpec, ...]:
            self._claims[claim_id] = specs = self.told_apart(asked)
            self._stopped_keys.difference_update(spec.key for spec in specs)
            await self._replan()
            return specs

        return await self._actor.execute(change)

    async def release_claim(self, claim_id: int) -> None:
        async def change() -> None:
            if self._claims.pop(claim_id, None) is not None:
                await self._replan()

        if not self._actor.ending.is_set():
            await self._actor.execute(change)

    async def stop_forward(self, forward_id: str) -> bool:
        """End one forward for good: it comes back with the next `attach`, not with the next snapshot."""

        async def change() -> bool:
            key = self.forwarder.key_of(forward_id)
            if key is None:
                return False
            self._stopped_keys.add(key)
            manual = tuple(spec for spec in self.record.manual if spec.key != key)
            self.record = replace(self.record, manual=manual)
            await self.forwarder.close_one(key, STOPPED)
            return True

        return bool(await self._actor.execute(change))

    # The actor.

    async def _live(self) -> None:
        try:
            await self._publisher.publish(self.forwarder.session_event("attached"))
            await self._watch_forever()
        except TargetError as error:
            self._actor.end(str(error))
        except Ending:
            pass
        except Exception:
            log.exception("a fault in the session of %s", self.record.container_name)
        finally:
            self._actor.end(FAULT)
            await self._wind_up(self._actor.end_reason)

    async def _wind_up(self, reason: str) -> None:
        self.connections.take_no_more()
        try:
            if drain_s := self._drain_s:
                await self._services.plane.drain(self.forwarder.forward_ids, drain_s)
            await self.forwarder.close_all(reason)
        finally:
            # The watcher ends last: what it finds of this session's relays it takes with it.
            await self.connections.aclose()
            self._drop_watch()
            self._beside.leave()
            # Not only once the collector comes to the circle that a session is: thousands of sockets are megabytes.
            self._snapshot, self._seen = (), {}
            self.watching.forget()
            self.record.options.forget_searches()
            self.state, self.problem = "ended", reason
            await self._publisher.publish(self.forwarder.session_event("detached", reason))
            self._settled.set()
            self._on_ended(self, reason)

    async def _watch_forever(self) -> None:
        failures = 0
        while True:
            try:
                failures = await self._attempt(failures)
            except Restart:  # wherever the command found us, also between two attempts
                self._drop_watch()
                failures = 0

    async def _attempt(self, failures: int) -> int:
        """Look at the container, and watch it if it runs; how many attempts in a row have failed now."""
        await self._idle(self._attempts.spend(1, time.monotonic()), wakes=())
        began_s = time.monotonic()
        try:
            info = await self._in_pool(self._inspect) or await self._go_on_elsewhere()
            if info is None:
                await self._wait_for_next()
            elif info.running:
                self._stopped_at_s = None
                await self._watch(info)
            else:
                await self._wait_for_start(info)
            return 0
        except NoShellError as error:
            await self._give_up(str(error))
            return 0
        except OverBudgetError as error:
            await self._rest(str(error))
            return 0
        except AutoforwardError as error:
            if isinstance(error, TargetError) and not self.record.outlives_container:
                raise TargetError(f"the container {self.record.container_name} is gone") from error
            failures += 1
            if failures <= SHOWN_AS_FAILED_AFTER:  # what goes on for hours is not said every two seconds
                log.info("%s: %s", self.record.container_name, error)
            # The first loss is often over by the next attempt; only then it is worth a word.
            if failures > 1 or isinstance(error, EngineUnreachableError):
                await self._become("failed" if failures > SHOWN_AS_FAILED_AFTER else "reconnecting", str(error))
            if failures > 3 or time.monotonic() - began_s > SETTLED_AFTER_S:
                self._settled.set()
        local = self.record.endpoint.socket_path is not None
        await self._idle(delay_s(failures, local=local, chance=random.random()))
        return failures

    def _inspect(self) -> ContainerInfo | None:
        """Blocks. None: the container is removed, and the session waits for the next one."""
        try:
            return self.engine.inspect_with_network(self.record.container_id)
        except TargetError:
            if self.record.outlives_container:
                return None
            raise

    async def _go_on_elsewhere(self) -> ContainerInfo | None:
        """Of a container that is removed: move to the next one of its workspace or service; None while there is none."""
        before = self.record

        def look() -> tuple[ContainerInfo, SessionRecord] | None:
            try:
                if (found := container_after(self.engine, before)) is None:
                    return None
                metadata = metadata_of(found, self.engine.image_labels(found).get(LABEL_METADATA, "[]"))
                return self.engine.inspect_with_network(found.container_id), moved(before, found, metadata)
            except TargetError:  # it is gone again
                return None

        found = await self._in_pool(look)
        if found is None or self.record is not before:
            return None
        info, self.record = found
        log.info("%s was removed: its session goes on with %s", before.container_name, info.name)
        self._on_moved(self)
        return info

    async def _in_pool(self, job: Callable[[], T]) -> T:
        return await self._actor.call(self._services.engine_pool, job)

    async def _engine_is_slow(self) -> None:
        """It may hang: who asks is told so by now, not once the request has timed out."""
        if self.state in ("starting", "watching"):
            await self._become("reconnecting", f"the engine at {self.record.endpoint.host} takes long to answer")

    async def _rest(self, reason: str) -> None:
        """It cost too much: it is left alone for a while, or until the container is started again."""
        if reason != self._cost_told:
            self._cost_told = reason
            log.warning("%s: %s; it is tried again every %.0f s", self.record.container_name, reason, LEFT_ALONE_S)
        await self._become("failed", reason)
        self._settled.set()
        await self._idle(LEFT_ALONE_S, wakes=("start",))

    async def _idle(self, seconds: float, wakes: Collection[str] | None = None) -> None:
        """Wait between attempts; an event of the container ends the wait, one of `wakes` if these are given."""
        self._next_try_s = deadline_s = time.monotonic() + seconds
        try:
            while (remaining_s := deadline_s - time.monotonic()) > 0:
                item = await self._actor.next_item(remaining_s)
                if isinstance(item, ContainerEvent) and (wakes is None or item.action in wakes):
                    return
        finally:
            self._next_try_s = None

    async def _wait_for_start(self, info: ContainerInfo) -> None:
        await self._rename(info.name)
        state: State = "reconnecting" if info.state == "paused" else "stopped"
        await self._wait_away(state, f"the container is {info.state}", f"the container has been {info.state}")

    async def _wait_for_next(self) -> None:
        """The container was removed: as if it was stopped, until there is another one of its workspace or service."""
        now = datetime.now(UTC)
        if self.record.removed is None:
            self.record = replace(self.record, removed=format_time(now))
            log.info("%s was removed: its session waits for the next one", self.record.container_name)
            self._on_moved(self)
        removed = parse_time(self.record.removed or "") or now
        away_s = max(0.0, (now - removed).total_seconds())
        if away_s >= FORGOTTEN_AFTER_S:
            self._actor.end(f"{self.record.container_name} was removed long ago, and no other came")
            raise Ending
        if self._stopped_at_s is None:
            self._stopped_at_s = time.monotonic() - away_s
        self._beside.leave()
        name = self.record.container_name
        what = f"{name} was removed: {self.record.known_as} is waited for"
        await self._wait_away("stopped", what, f"{name} has been removed", FORGOTTEN_AFTER_S - away_s)

    async def _wait_away(self, state: State, what: str, has_been: str, forgotten_s: float | None = None) -> None:
        """The container does not run: keep the ports for a while, then only the leases, until something happens to it.

        After `forgotten_s` seconds as well, for the caller to look again.
        """
        self._drop_watch()
        if self._stopped_at_s is None:
            self._stopped_at_s = time.monotonic()
        if self.state != "dormant":
            await self._become(state, what)
        self.problem = what
        self._settled.set()
        deadline_s = self._stopped_at_s + DORMANT_AFTER_S
        while True:
            remaining_s = max(0.0, deadline_s - time.monotonic()) if self.state != "dormant" else forgotten_s
            item = await self._actor.next_item(remaining_s)
            if item is None and self.state == "dormant":
                return
            if isinstance(item, lane_choice.NumbersAsked):
                await self.forwarder.give_up(item.numbers)
                continue
            if item is None:
                await self.forwarder.close_all(f"{has_been} for a long time")
                self._beside.leave()
                self.state = "dormant"
            elif isinstance(item, ContainerEvent):
                return  # look at it again: the event may be old

    async def _give_up(self, reason: str) -> None:
        """Nothing can run in this container as it is: wait for it to be restarted."""
        await self._become("failed", reason)
        self._settled.set()
        while not isinstance(await self._actor.next_item(None), ContainerEvent):
            pass

    async def _become(self, state: State, problem: str) -> None:
        problem = problem.replace(self.record.container_id, self.record.container_name)  # the engine's words
        self.state, self.problem = state, problem
        self._recheck_at_s = None  # nothing is decided until it is back
        self.connections.close_gate()
        await self.forwarder.suspend(problem)

    # Watching.

    async def _watch(self, info: ContainerInfo) -> None:
        """Watch until the watcher is lost. Returns after a loss that follows a time of working; raises otherwise."""
        self.info = info
        self._beside.join(self.record, info)
        restarted = bool(self._seen)
        await self._rename(info.name)
        self.record = self.record.in_container(info)
        await self.forwarder.move_to(self._place(self.record))
        if restarted:
            self._extend_grace()
        self._is_paused = False
        try:
            watch = await self.watching.begin(info, self.record.options)
            self.problem = self.connections.problem
            await self._follow(watch)
        except Restart:
            # Only how to watch has changed: connections that are open now keep their watcher, and it keeps them.
            if self.record.container_id == info.container_id:
                self.watching.retire()
            raise
        except Ending:
            if self._drain_s:
                self.watching.retire()
            raise
        finally:
            self._drop_watch()

    async def _follow(self, watch: lane_choice.Watch) -> None:
        frames = 0
        began_s = time.monotonic()
        retry_at_s: float | None = None
        newest: Frame | None = None
        is_due = False
        while True:
            now_s = time.monotonic()
            if self.forwarder.has_failures:
                retry_at_s = retry_at_s or now_s + RETRY_FAILED_S
            else:
                retry_at_s = None
            rest_s = self._rest_s(now_s)
            if not frames:
                rest_s = min(rest_s, max(0.0, began_s + self._limits.first_wait_s - now_s))
            if (newest is not None or is_due) and not rest_s:
                frame, newest, is_due = newest, None, False
                self._plans.spend(plan_cost(len(frame.table.rows if frame else self._snapshot)), now_s)
                if frame is None:
                    await self._replan()
                else:
                    frames += 1
                    await self._take_frame(frame, first=frames == 1)
                continue
            decide_at_s = now_s + rest_s if newest is not None or is_due else self._recheck_at_s
            dues = [due for due in (decide_at_s, retry_at_s) if due is not None]
            item = await self._actor.next_item(max(0.0, min(dues) - now_s) if dues else None)
            match item:
                case Frame():
                    newest = item
                case lane_choice.Lost(lost, reason) if lost is watch:
                    self.connections.close_gate()
                    if watch.is_over_budget:
                        raise OverBudgetError(reason)
                    if frames and time.monotonic() - began_s > WORKED_S:
                        log.info("%s: the watch was lost: %s", self.record.container_name, reason)
                        return
                    raise AutoforwardError(f"the watch on the container failed: {reason}")
                case lane_choice.PauseUnclear():
                    await self._look_for_pause()
                case ContainerEvent():
                    await self._take_event(item)
                case lane_choice.NetworkChanged():
                    await self._look_at_network()
                    is_due = True
                case (
                    lane_choice.ProcessesKnown() | lane_choice.NeighboursChanged() | lane_choice.ConfigurationChanged()
                ):
                    is_due = True
                case None:
                    if retry_at_s is not None and time.monotonic() >= retry_at_s:
                        retry_at_s = None
                        await self.forwarder.retry_failed(self._host_ip)
                    is_due = True

    async def _look_at_network(self) -> None:
        try:
            self.info = await self._in_pool(lambda: self.engine.inspect_with_network(self.record.container_id))
        except AutoforwardError as error:  # the container's own events, and those of its watch, tell more
            log.info("%s: the containers on its network cannot be listed: %s", self.record.container_name, error)

    def _rest_s(self, now_s: float) -> float:
        """How long the next decision has to wait: what changes all the time is followed at the pace of its budget."""
        rest_s = max(self._plans.rest_s(now_s), self._publisher.rest_s(now_s))
        if rest_s > self._limits.slowed_s and not self._slowed_told:
            self._slowed_told = True
            name = self.record.container_name
            log.warning("%s: its ports and processes change all the time: they are followed with a delay", name)
        return rest_s

    async def _take_frame(self, frame: Frame, *, first: bool) -> None:
        addresses = self.info.addresses if self.info else ()
        self._snapshot = snapshot_from_rows(frame.table.rows, addresses)
        if first:
            self.state = "watching"
            if self.info is not None:
                self._beside.join(self.record, self.info, self.watching.network)
        await asyncio.sleep(0)  # a large one is some work, and so is the plan: others have their turn between
        await self._replan()
        if first:
            self.connections.open_gate()
        self.connections.take_frame(frame)

    async def _take_event(self, event: ContainerEvent) -> None:
        if event.action in ("pause", "unpause"):
            await self._pause(event.action == "pause")
        elif event.action == "recheck" and self._is_paused:
            await self._look_for_pause()
        elif event.action == "rename" and event.name:
            await self._rename(event.name)

    async def _rename(self, name: str) -> None:
        """Another container may have the old name now: the session, and what is bound, goes by the new one."""
        if name != self.record.container_name:
            self.record = self.record.named(name)
            await self.forwarder.move_to(self._place(self.record))
            self._on_moved(self)

    async def _look_for_pause(self) -> None:
        """An event may have been missed. Raises what the engine raises: then the watch is as good as lost."""
        info = await self._in_pool(lambda: self.engine.inspect(self.record.container_id))
        await self._pause(info.state == "paused")

    async def _pause(self, paused: bool) -> None:
        """Connections and the watch stay as they are for as long as the engine says that it is paused."""
        was_paused, self._is_paused = self._is_paused, paused
        self.watching.pause(paused)
        if paused:
            await self._become("reconnecting", "the container is paused")
        elif was_paused and self.state == "reconnecting":
            self.state, self.problem = "watching", self.connections.problem
            await self._replan()
            self.connections.open_gate()

    @property
    def _drain_s(self) -> float:
        """How long open connections may go on, now that the session ends."""
        return max(0.0, self._drained_by_s - time.monotonic())

    def _drop_watch(self) -> None:
        self.connections.close_gate()
        self.watching.drop()

    def _extend_grace(self) -> None:
        """Servers of a container that was away may take a while to come back: their ports wait for them."""
        until_s = time.monotonic() + self._limits.restart_grace_s - self._limits.withdrawal_grace_s
        self._seen = {key: replace(seen, gone_at_s=until_s, returning=True) for key, seen in self._seen.items()}

    # Deciding.

    @property
    def _host_ip(self) -> str:
        return self.record.options.bind or LOOPBACK

    async def _replan(self) -> None:
        """Decide from what is known now, and carry it out. Not before a snapshot is known, nor while the container is away."""
        if self.state != "watching":
            return
        elsewhere = self._beside.consult(self.record, self._snapshot, self._seen, can_relay=self.tool is not None)
        rules = rules_of(
            self.record,
            self.info,
            self.manual_specs,
            self._stopped_keys,
            self.tool,
            self.problem,
            elsewhere,
            self.watching.network,
        )
        rules = replace(rules, withdrawal_grace_s=self._limits.withdrawal_grace_s)
        wanted = plan(rules, self._snapshot, self._seen, time.monotonic(), self.watching.processes())
        self._seen = dict(wanted.seen)
        self._recheck_at_s = wanted.recheck_at_s
        self._stopped_keys = {key for key in self._stopped_keys if key in wanted.seen or self._is_named(key)}
        await self.forwarder.apply(wanted, self._host_ip)
        self._beside.settle(self.record, self._seen)
        if not wanted.undecided:
            self._settled.set()

    def _is_named(self, key: ForwardKey) -> bool:
        return any(spec.key == key for spec in (*self.record.declared, *self.manual_specs))

    @staticmethod
    def _place(record: SessionRecord) -> Place:
        return Place(
            str(record.identity), record.container_id, record.container_name, record.workspace_folder, record.service
        )

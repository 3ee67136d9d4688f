"""One session: the supervisor's work for one container, across its restarts.

A session is an actor (`actor.py`): one task processes frames, container events and commands sequentially. Its phases are
plain code: inspect the container, wait until it runs, watch it until the watch is lost, repeat. Client connections run
beside it (`openings.py`).
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
from autoforward.supervisor.session.metering import MeteredPublisher
from autoforward.supervisor.session.openings import Connections
from autoforward.supervisor.session.session_states import SESSION, State
from autoforward.supervisor.session.shared import SessionServices
from autoforward.trust.widening import not_granted

log = logging.getLogger(__name__)

SETTLED_AFTER_S = 10.0
"""A failed attempt after this time is the answer for a waiting command."""

DORMANT_AFTER_S = 300.0
"""A container that was stopped or removed this long ago keeps neither its host ports nor the supervisor."""

FORGOTTEN_AFTER_S = 30 * 86400.0
"""How long to wait for the next container of a workspace or service."""

STOPPED = "stopped by the user"
"""The end reason that a foreground `forward` reports as its own."""

T = TypeVar("T")


class Session:
    """Call `start` and `end` once each. `record` is what is stored."""

    def __init__(
        self,
        record: SessionRecord,
        engine: Engine,
        services: SessionServices,
        on_ended: Callable[[Session, str], None],
        on_change: Callable[[], None],
        on_moved: Callable[[Session], None] = lambda _session: None,
    ) -> None:
        """`on_moved`: its container was removed, or it continues in the next one; the stored record must follow."""
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
        self._slowdown_reported = False
        self._reported_cost = ""
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
        self._beside = SessionClaims(services.neighbours, lambda: self._actor.post(lane_choice.NeighboursChanged()))
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._claims: dict[int, tuple[PortSpec, ...]] = {}
        self.awaited = 0
        """Commands about to claim its ports."""
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

    # Called by the supervisor.

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
        """The rows of `list --json`: its forwards, unforwarded ports, and requests that are not granted."""
        record = self.record
        asked = not_granted(record.requests, record.way_out)
        return list(self.forwarder.rows(record.target, self.tool.lane if self.tool else None, counters, asked))

    @property
    def next_try_in_s(self) -> float | None:
        """How long until the next attempt; None if none is pending."""
        return None if self._next_try_s is None else max(0.0, self._next_try_s - time.monotonic())

    async def settled(self) -> None:
        """Wait until a first snapshot has been applied, or its absence is explained."""
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
        """The lane that carries its connections; None if there is none."""
        return self.connections.tool

    @property
    def direct(self) -> DirectSwitch:
        """Whether its connections may bypass the engine."""
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
        """Whether anything still needs this session."""
        return self.record.attached or bool(self.record.manual) or bool(self._claims) or self.awaited > 0

    def uses_network_of(self, container_id: str) -> bool:
        return self.info is not None and self.info.network_of == container_id

    def notice_network(self) -> None:
        """The container whose network this one uses has changed: the engine's published ports may be another's."""
        self._actor.post(lane_choice.NetworkChanged())

    def notice_event(self, event: ContainerEvent) -> None:
        """The engine sent an event about this container, or may have missed one."""
        self._actor.post(event)

    def recheck(self) -> None:
        """Its container may have changed, or been succeeded by another."""
        self.notice_event(ContainerEvent("recheck", self.record.container_id, self.record.container_name, {}))

    @property
    def is_away(self) -> bool:
        """Whether its container does not run, and its host ports are held."""
        return self.state == "stopped"

    def numbers_asked(self, numbers: frozenset[tuple[str, int]]) -> None:
        """Another container publishes these ports when it starts."""
        self._actor.post(lane_choice.NumbersAsked(numbers))

    def check_streams(self, timeout_s: float) -> None:
        """The machine was asleep: check the watcher. (The data plane checks the agent.)"""
        self.watching.ping_now(timeout_s)

    async def update(self, record: SessionRecord) -> None:
        """Apply new options, ports and container; returns once they are in effect."""

        async def change() -> None:
            self._stopped_keys.clear()
            await self._take_over(replace(record, opened=self.record.opened))

        await self._actor.execute(change)
        await self.settled()

    async def reconfigure(self, change: Callable[[SessionRecord], SessionRecord], *, at_once: bool = False) -> bool:
        """Apply `change` to the record as it is then; returns whether it changed.

        Does not wait for a watch, nor, unless `at_once` (a user's action), for the consequences, which follow when the session's
        budget allows.
        """

        async def take_over() -> bool:
            if (record := change(self.record)) == self.record:
                return False
            await self._take_over(record, at_once=at_once)
            return True

        # A Restart, without a result, follows after the record was applied.
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
            self._actor.post(lane_choice.ConfigurationChanged())

    def told_apart(self, specs: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
        """These SPECs relative to the existing forwards: a port forwarded on another number gets an additional one."""
        numbers = {spec.key: spec.number for spec in self.manual_specs}
        return told_apart(specs, {**numbers, **self.forwarder.numbers})

    async def claim(self, claim_id: int, asked: tuple[PortSpec, ...]) -> tuple[PortSpec, ...]:
        """Forward these while the claim is held; returns them relative to the existing forwards."""

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
        """End one forward permanently: it returns with the next `attach`, not with the next snapshot."""

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
            await self._shut_down(self._actor.end_reason)

    async def _shut_down(self, reason: str) -> None:
        self.connections.take_no_more()
        try:
            if drain_s := self._drain_s:
                await self._services.plane.drain(self.forwarder.forward_ids, drain_s)
            await self.forwarder.close_all(reason)
        finally:
            # The watcher ends last: it kills the session's remaining relays.
            await self.connections.aclose()
            self._drop_watch()
            self._beside.leave()
            # Break the reference cycle now: thousands of sockets are megabytes until the collector runs.
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
            except Restart:  # wherever the command arrived, also between two attempts
                self._drop_watch()
                failures = 0

    async def _attempt(self, failures: int) -> int:
        """Inspect the container, and watch it if it runs; returns the attempts that have failed in a row."""
        await self._idle(self._attempts.spend(1, time.monotonic()), wakes=())
        began_s = time.monotonic()
        try:
            info = await self._in_pool(self._inspect) or await self._move_to_next()
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
            if failures <= SHOWN_AS_FAILED_AFTER:  # a lasting problem is not logged every two seconds
                log.info("%s: %s", self.record.container_name, error)
            # The first loss is often over by the next attempt; log from the second on.
            if failures > 1 or isinstance(error, EngineUnreachableError):
                await self._become("failed" if failures > SHOWN_AS_FAILED_AFTER else "reconnecting", str(error))
            if failures > 3 or time.monotonic() - began_s > SETTLED_AFTER_S:
                self._settled.set()
        local = self.record.endpoint.socket_path is not None
        await self._idle(delay_s(failures, local=local, chance=random.random()))
        return failures

    def _inspect(self) -> ContainerInfo | None:
        """None: the container is removed, and the session waits for the next one. Blocks."""
        try:
            return self.engine.inspect_with_network(self.record.container_id)
        except TargetError:
            if self.record.outlives_container:
                return None
            raise

    async def _move_to_next(self) -> ContainerInfo | None:
        """Its container is removed: move to the next one of its workspace or service; None if there is none."""
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
        """It may hang: report it now, not after the request's timeout."""
        if self.state in ("starting", "watching"):
            await self._become("reconnecting", f"the engine at {self.record.endpoint.host} takes long to answer")

    async def _rest(self, reason: str) -> None:
        """It cost too much: pause for a while, or until the container restarts."""
        if reason != self._reported_cost:
            self._reported_cost = reason
            log.warning("%s: %s; it is tried again every %.0f s", self.record.container_name, reason, LEFT_ALONE_S)
        await self._become("failed", reason)
        self._settled.set()
        await self._idle(LEFT_ALONE_S, wakes=("start",))

    async def _idle(self, seconds: float, wakes: Collection[str] | None = None) -> None:
        """Wait between attempts; an event of the container (of `wakes`, if given) ends the wait."""
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
        """The container was removed: wait, as if it was stopped, for the next one of its workspace or service."""
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
        """The container does not run: keep its ports for a while, then only the leases, until an event.

        Returns after `forgotten_s` seconds as well, so that the caller checks again.
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
                return  # inspect it again: the event may be old

    async def _give_up(self, reason: str) -> None:
        """Nothing can run in this container: wait for its restart."""
        await self._become("failed", reason)
        self._settled.set()
        while not isinstance(await self._actor.next_item(None), ContainerEvent):
            pass

    async def _become(self, state: State, problem: str) -> None:
        problem = problem.replace(self.record.container_id, self.record.container_name)  # the engine's message
        self.state, self.problem = state, problem
        self._recheck_at_s = None  # no decisions until it is back
        self.connections.close_gate()
        await self.forwarder.suspend(problem)

    # Watching.

    async def _watch(self, info: ContainerInfo) -> None:
        """Watch until the watcher is lost. Returns if it had worked before the loss; raises otherwise."""
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
            # Only the way to watch has changed: open connections keep their watcher.
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
                    await self._ask_for_pause()
                case ContainerEvent():
                    await self._take_event(item)
                case lane_choice.NetworkChanged():
                    await self._inspect_network()
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

    async def _inspect_network(self) -> None:
        try:
            self.info = await self._in_pool(lambda: self.engine.inspect_with_network(self.record.container_id))
        except AutoforwardError as error:  # the container's own events and its watch report more
            log.info("%s: the containers on its network cannot be listed: %s", self.record.container_name, error)

    def _rest_s(self, now_s: float) -> float:
        """How long the next decision must wait: constant changes are followed at the budget's pace."""
        rest_s = max(self._plans.rest_s(now_s), self._publisher.rest_s(now_s))
        if rest_s > self._limits.slowed_s and not self._slowdown_reported:
            self._slowdown_reported = True
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
        await asyncio.sleep(0)  # a large frame and its plan are work: let others run in between
        await self._replan()
        if first:
            self.connections.open_gate()
        self.connections.take_frame(frame)

    async def _take_event(self, event: ContainerEvent) -> None:
        if event.action in ("pause", "unpause"):
            await self._pause(event.action == "pause")
        elif event.action == "recheck" and self._is_paused:
            await self._ask_for_pause()
        elif event.action == "rename" and event.name:
            await self._rename(event.name)

    async def _rename(self, name: str) -> None:
        """Another container may have the old name now: use the new one for the session and its forwards."""
        if name != self.record.container_name:
            self.record = self.record.named(name)
            await self.forwarder.move_to(self._place(self.record))
            self._on_moved(self)

    async def _ask_for_pause(self) -> None:
        """An event may have been missed. Raises the engine's errors: then the watch is as good as lost."""
        info = await self._in_pool(lambda: self.engine.inspect(self.record.container_id))
        await self._pause(info.state == "paused")

    async def _pause(self, paused: bool) -> None:
        """Connections and the watch stay unchanged while the engine reports a pause."""
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
        """Servers of a container that was away may need time to come back: their ports wait."""
        until_s = time.monotonic() + self._limits.restart_grace_s - self._limits.withdrawal_grace_s
        self._seen = {key: replace(seen, gone_at_s=until_s, returning=True) for key, seen in self._seen.items()}

    # Planning.

    @property
    def _host_ip(self) -> str:
        return self.record.options.bind or LOOPBACK

    async def _replan(self) -> None:
        """Plan from the current state, and apply it; not before the first snapshot, nor while the container is away."""
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

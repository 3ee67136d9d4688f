"""One `autoforward watch`: attaches to every container that its filter selects, running now or started later.

Level-triggered: every event (`wake`) leads to another pass over all running containers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from autoforward.config.approvals import Approvals
from autoforward.config.caller import CommandContext, bare_record, record_for
from autoforward.config.container_filter import ContainerFilter
from autoforward.config.metadata import metadata_of
from autoforward.config.resolve import SourceContents, configure, read_own
from autoforward.config.session_record import SessionRecord, held_by
from autoforward.core.backoff import delay_s
from autoforward.core.errors import AutoforwardError, EngineUnreachableError, TargetError, UsageError
from autoforward.core.identity.labels import LABEL_METADATA
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.engine.pool import EnginePool
from autoforward.supervisor.autoattach.compose_services import ComposeServices
from autoforward.supervisor.session.actor import FAULT
from autoforward.supervisor.session.session import Session
from autoforward.supervisor.session.status_rows import describe
from autoforward.trust.widening import Consent, not_granted
from autoforward.trust.writers import Writers

log = logging.getLogger(__name__)

MAX_NOTES = 100
"""Messages queued for a slow command; more are dropped."""

T = TypeVar("T")
WatchId = tuple[object, str | None]
"""The engine (`EngineEndpoint.key`) and the filter, as sessions store it."""

Notes = asyncio.Queue[dict[str, Any]]


class Host(Protocol):
    """What this module needs of the supervisor."""

    sessions: dict[str, Session]
    engines: EnginePool
    siblings: ComposeServices
    approvals: Approvals

    def writers(self) -> Writers: ...
    def saw(self, record: SessionRecord) -> None: ...
    def session_for(self, record: SessionRecord) -> Session | None: ...
    async def store_session(self, session: Session) -> None: ...


class AutoAttach:
    """`caller`: the last command's context. `declined`: by container, when a container that the user detached was
    started.

    `quiet` is called with sessions whose servers the user knows: they ran before the watch began.
    """

    def __init__(
        self,
        host: Host,
        quiet: Callable[[Session], None],
        endpoint: EngineEndpoint,
        selection: ContainerFilter,
        caller: CommandContext,
    ) -> None:
        self.endpoint = endpoint
        self.selection = selection
        self.caller = caller
        self.declined: dict[str, str] = {}
        self.problem: str | None = None
        self.hint: str | None = None
        """The way out of the problem, where there is one to say."""
        self.commands: set[Notes] = set()
        self._host = host
        self._quiet = quiet
        self._wake = asyncio.Event()
        self._has_looked = False
        self._reported: set[str] = set()
        """Containers whose reason for not being attached the command has been sent."""
        self._faulty: set[str] = set()
        """Containers that caused an internal error: skipped while they run."""
        self._task: asyncio.Task[None] | None = None

    @property
    def id(self) -> WatchId:
        return self.endpoint.key, str(self.selection)

    def start(self) -> None:
        """Start the first pass now, and one after every event."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watch for {self.selection}")
        self.wake()

    def close(self) -> None:
        """Attach to nothing more. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    def notify(self, note: dict[str, Any]) -> None:
        for notes in self.commands:
            if notes.qsize() < MAX_NOTES:
                notes.put_nowait(note)

    # Events.

    def wake(self) -> None:
        """Something may have changed."""
        self._wake.set()

    def on_event(self, event: ContainerEvent | None) -> None:
        """None: events may have been missed."""
        if event is None or (event.action in ("start", "unpause") and self.selection.covers(event.labels)):
            self.wake()

    def on_session_ended(self, session: Session, reason: str) -> None:
        if reason == FAULT:  # else it would start and end for ever
            self.decline([session])
        self.wake()

    def decline(self, sessions: list[Session]) -> None:
        """The user detached these: skip them until they restart."""
        declined = {
            one.record.container_id: one.info.started_at
            for one in sessions
            if one.info is not None and one.record.endpoint.key == self.endpoint.key
        }
        if declined:
            self.declined |= declined
            self.notify({"type": "declined", "declined": self.declined})

    # Passes.

    async def _run(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self._attach_running()
                failures = 0
                self._set_problem(None)
            except AutoforwardError as error:
                failures += 1
                self._set_problem(str(error), error.hint)
            except Exception as error:
                log.exception("a fault in the watch for %s", self.selection)
                failures += 1
                self._set_problem(f"an internal error, see the log: {error}")
            local = self.endpoint.socket_path is not None
            waits_s = delay_s(failures, local=local, chance=random.random()) if failures else None
            try:
                await asyncio.wait_for(self._wake.wait(), waits_s)
            except TimeoutError:
                continue

    def _set_problem(self, problem: str | None, hint: str | None = None) -> None:
        if problem != self.problem:
            self.problem, self.hint = problem, hint
            log.info("the watch for %s: %s", self.selection, problem or "the engine answers")
            self.notify({"type": "problem", "problem": problem, "hint": hint})

    async def _attach_running(self) -> None:
        """Attach to running, selected containers. Raises the engine's errors."""
        engine = self._host.engines.get(self.endpoint).engine
        queries = self.selection.queries
        found = [(query, await self._in_pool(functools.partial(engine.find_ids, query))) for query in queries]
        running = {key: None for _query, ids in found for key in ids}
        # An image's metadata selects nothing: most images for dev containers have it.
        claims = {key for query, ids in found for key in ids if LABEL_METADATA not in query or self.selection.labels}
        self.declined = {key: started for key, started in self.declined.items() if key in running}
        self._reported &= running.keys()
        self._faulty &= running.keys()
        left_out = self._faulty | {
            one.record.container_id for one in self._host.sessions.values() if one.record.attached
        }
        await asyncio.gather(*(self._consider(engine, key, key in claims) for key in running if key not in left_out))
        self._has_looked = True

    async def _consider(self, engine: Engine, container_id: str, claims: bool) -> None:
        """`claims`: it has the labels, from whatever source."""
        try:
            info = await self._in_pool(lambda: engine.inspect(container_id))
            if not info.running or self.declined.get(container_id) == info.started_at:
                return
            if self.selection.covers(info.labels):
                await self._adopt(info, await self._in_pool(lambda: engine.image_labels(info)))
            elif claims:
                self._tell_once(info, f"only labels of its image make it one of the {self.selection}")
        except EngineUnreachableError:
            raise
        except TargetError as error:  # removed meanwhile
            log.debug("%s", error)
        except AutoforwardError as error:
            self._warn(f"container {container_id[:12]} is not attached to: {error}")
        except Exception as error:  # labels may be anything: continue with the other containers
            log.exception("a fault while container %s was looked at", container_id[:12])
            self._faulty.add(container_id)
            self._warn(f"container {container_id[:12]} is not attached to: an internal error, see the log: {error}")

    async def _adopt(self, info: ContainerInfo, image_labels: Mapping[str, str]) -> None:
        """Start a session for this container, unless another has its identity's. A session with an owner keeps its options."""
        before = self._host.session_for(bare_record(info, self.endpoint, self.caller, target=info.name, search=False))
        if before is not None and before.record.container_id != info.container_id:
            # Once that one is removed its session ends or moves, and this one gets the numbers.
            if await self._host.siblings.holder_of(before) != "gone":
                self._tell_once(info, f"{held_by(before.record)}, and it waits until that one is removed")
            else:
                before.recheck()
            return
        caller = self.caller if before is None else CommandContext.of(before.record)
        record = await self._record(info, caller, image_labels)
        session = self._host.session_for(record)
        if session is None and before is None:
            # No await between this check and the session: no command can interleave.
            new = [await self._host.siblings.take_up(record)]
            if record.siblings:
                new += await self._host.siblings.take_up_others(record, new_only=True)
            for one in new:
                self._host.saw(one.record)
                if not self._has_looked:
                    self._quiet(one)
        elif session is None or session is not before:
            self.wake()  # another command was first, or it has ended: check again
        elif not session.record.attached:
            await self._take_over(session, record)

    async def _record(
        self, info: ContainerInfo, caller: CommandContext, image_labels: Mapping[str, str]
    ) -> SessionRecord:
        """As `attach` would request it. Invalid files are left out until they are fixed."""
        # A large label is parsed in a child process.
        metadata = await self._in_pool(lambda: metadata_of(info, image_labels.get(LABEL_METADATA, "[]")))
        how: dict[str, Any] = {
            "target": info.workspace_folder or info.name,
            "metadata": metadata,
            "siblings": self.selection.services,
        }
        writers = self._host.writers()
        try:
            record, warnings = await self._in_pool(
                lambda: record_for(info, self.endpoint, caller, consent_of=self._consent_of, writers=writers, **how)
            )
        except UsageError as error:
            record = await self._in_pool(lambda: self._unconfigured(info, caller, writers, how))
            warnings = (f"its configuration is left out: {error}",)
        for warning in (*warnings, *not_granted(record.requests, record.way_out)):
            self._warn(f"{info.name}: {warning}")
        return replace(record, watch=str(self.selection))

    def _unconfigured(
        self, info: ContainerInfo, caller: CommandContext, writers: Writers, how: dict[str, Any]
    ) -> SessionRecord:
        """With only the user's own files: their restrictions apply whatever is wrong with the others."""
        try:
            record = bare_record(info, self.endpoint, caller, **how)
        except UsageError:  # the folder does not answer
            record = bare_record(info, self.endpoint, caller, **how, search=False)
        try:
            contents = read_own(record.sources, consent=self._consent_of(record), writers=writers)
        except UsageError:  # the user's own files are invalid
            contents = SourceContents()
        return configure(record, contents)[0]

    def _consent_of(self, record: SessionRecord) -> Consent:
        return self._host.approvals.consent_of(record)

    async def _take_over(self, session: Session, record: SessionRecord) -> None:
        """Add from `record` what the session lacks: it was started for single ports."""

        def change(before: SessionRecord) -> SessionRecord:
            return replace(
                record,
                session_id=before.session_id,
                identity=before.identity,
                target=before.target,
                manual=before.manual,
                opened=before.opened,
                siblings=before.siblings or record.siblings,
                is_sibling=before.is_sibling,
                watch=before.watch if before.attached else record.watch,
            )

        await session.reconfigure(change)
        await self._host.store_session(session)
        self.notify({"type": "joined", "session": describe(session)})

    def _tell_once(self, info: ContainerInfo, why: str) -> None:
        if info.container_id not in self._reported:
            self._reported.add(info.container_id)
            self._warn(f"{info.name} is not attached to: {why}")

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self.notify({"type": "warning", "text": text})

    async def _in_pool(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._host.engines.get(self.endpoint).pool, job)

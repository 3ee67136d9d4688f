"""Sessions from records, and for the other services of a compose project, running now or started later."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from autoforward.config.approvals import Approvals
from autoforward.config.resolve import configure, read_sources, sibling_of
from autoforward.config.session_record import SessionRecord, held_by, merge_specs, told_apart
from autoforward.core.errors import AutoforwardError, TargetError, UsageError
from autoforward.core.identity.claims import Holder, holder_of, takes_over
from autoforward.core.identity.labels import LABEL_PROJECT, LABEL_PROJECT_FOLDER
from autoforward.core.model import ContainerInfo, EngineEndpoint
from autoforward.engine.client import ContainerEvent, Engine
from autoforward.engine.pool import EnginePool
from autoforward.engine.targets import services_of
from autoforward.supervisor.session.session import Session
from autoforward.trust.writers import Writers

log = logging.getLogger(__name__)

T = TypeVar("T")


class Host(Protocol):
    """What this module needs of the supervisor."""

    sessions: dict[str, Session]
    engines: EnginePool
    approvals: Approvals

    def writers(self) -> Writers: ...
    def saw(self, record: SessionRecord) -> None: ...
    def session_for(self, record: SessionRecord) -> Session | None: ...
    def add_session(self, record: SessionRecord) -> Session: ...
    async def store_session(self, session: Session) -> None: ...
    def spawn(self, work: object, name: str) -> None: ...


class HeldError(AutoforwardError):
    """Another container has the session of this container's identity."""

    def __init__(self, record: SessionRecord, before: SessionRecord, holder: Holder) -> None:
        name = record.container_name
        super().__init__(
            f"{name} is not attached to: {held_by(before)}, and it is {holder}",
            hint=f"remove {before.container_name}, or let {name} take its session and host ports over: "
            f"`autoforward attach --replace {name}`",
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """How to resolve a session that another container may have.

    `by_hand`: requested by a command, not found by a watch. `replace`: also from a running container. `taken` and
    `refused` collect texts for the user.
    """

    by_hand: bool = False
    replace: bool = False
    taken: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class ComposeServices:
    """`take_up` makes a record a session; `on_event` does so for services that start while their project is watched."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: dict[tuple[object, str], dict[str, str]] = {}
        """By engine and project: the considered containers, and when each was started."""
        self._waiting = False
        """Whether a service was skipped because another container has its session."""

    async def take_up(self, record: SessionRecord, claim: Claim | None = None) -> Session:
        """Begin a session, or change the existing one: replace options, add SPECs. Stored when it returns.

        Raises HeldError if another container has the session and `claim` does not resolve it.
        """
        while (session := await self._holder_for(record, claim or Claim())) is not None:
            if record.manual:
                await session.settled()  # its forwards decide which SPECs are additional
            before = session.record
            manual = merge_specs(before.manual, session.told_apart(record.manual))
            identity = before.identity if before.container_id == record.container_id else record.identity
            # The same container by another endpoint (a context, an address) keeps its original endpoint.
            endpoint = before.endpoint
            if record.endpoint.key == endpoint.key:
                endpoint = replace(record.endpoint, source=endpoint.source)
            changed = replace(record, session_id=before.session_id, identity=identity, endpoint=endpoint, manual=manual)
            self._host.engines.renew(endpoint)
            try:
                await session.update(changed)
                break
            except TargetError:  # it has just ended, with its container
                await session.wait_ended()
        else:
            self._host.engines.renew(record.endpoint)
            session = self._host.add_session(replace(record, manual=told_apart(record.manual, {})))
        await self._host.store_session(session)
        return session

    async def session_of(self, record: SessionRecord) -> Session | None:
        """The session that this container has, or takes over from a removed one. A session that does not outlive its
        removed container has ended when this returns.

        Raises HeldError, and the engine's errors.
        """
        while (session := await self._holder_for(record, Claim())) is not None:
            before = session.record
            if before.container_id == record.container_id:
                return session
            if before.outlives_container:
                await session.update(
                    replace(
                        before, container_id=record.container_id, container_name=record.container_name, removed=None
                    )
                )
                return session
            await session.end(f"the container {before.container_name} is gone")
        return None

    async def _holder_for(self, record: SessionRecord, claim: Claim) -> Session | None:
        """The session that the record may change, or None to begin one. Raises HeldError, and the engine's errors."""
        while (session := self._host.session_for(record)) is not None:
            before = session.record
            if before.container_id == record.container_id:
                return session
            holder, name = await self._inspect(session)
            if self._host.session_for(record) is not session or session.record is not before:
                continue  # meanwhile it has ended, or moved to another container
            if before.identity.is_name and name not in (None, before.container_name):
                await _follow_name(session, name)  # the old name is another container's by now
                continue
            if not takes_over(holder, by_hand=claim.by_hand, replace=claim.replace):
                raise HeldError(record, before, holder)
            if holder != "gone":
                text = f"{record.container_name} takes over the session of {before.container_name}, which is {holder}"
                log.info("%s", text)
                claim.taken.append(text)
            return session
        return None

    async def holder_of(self, session: Session) -> Holder:
        """The engine's state of a session's container."""
        return (await self._inspect(session))[0]

    async def _inspect(self, session: Session) -> tuple[Holder, str | None]:
        """As `holder_of`, with the container's current name."""
        try:
            info = await self._in_pool(session.record, lambda: session.engine.inspect(session.record.container_id))
        except TargetError:
            return holder_of(None), None
        return holder_of(info.state), info.name

    async def is_moving(self, before: Session, record: SessionRecord) -> bool:
        """Whether a session moves to this container by itself, with its own options, because its own was removed."""
        if before.record.container_id == record.container_id or not before.record.outlives_container:
            return False
        if await self.holder_of(before) != "gone":
            return False
        before.recheck()
        return True

    async def take_up_others(
        self, anchor: SessionRecord, claim: Claim | None = None, *, new_only: bool = False
    ) -> list[Session]:
        """Sessions for the other running services of the anchor's project. Raises the engine's errors.

        `new_only`: existing sessions stay unchanged, and are not returned.
        """
        project, engine = anchor.project, self._engine_of(anchor)
        if project is None or engine is None:
            return []
        found = await self._in_pool(anchor, lambda: self._services_of(engine, anchor, project))
        self._note(anchor, found)
        sessions = []
        known = {one.record.container_id for one in self._host.sessions.values()} if new_only else set()
        for info in found:
            if info.container_id in known | {anchor.container_id}:
                continue
            if (session := await self._adopt(anchor, info, claim or Claim())) is not None:
                sessions.append(session)
        return sessions

    def on_event(self, endpoint: EngineEndpoint, event: ContainerEvent | None) -> None:
        """A container has started: attach if it is a service of a project that is watched as a whole.

        None: events may have been missed; find what has started since.
        """
        if event is None:
            self._adopt_missed_sessions(endpoint)
            return
        project, folder = event.labels.get(LABEL_PROJECT), event.labels.get(LABEL_PROJECT_FOLDER)
        if event.action != "start" or project is None:
            return
        sessions = [one for one in self._host.sessions.values() if one.record.endpoint.key == endpoint.key]
        if any(one.record.container_id == event.container_id for one in sessions):
            return
        anchors = [one for one in sessions if one.record.siblings and _is_of(one, project, folder)]
        # Prefer the session with its own configuration, if it still exists.
        anchor = min(anchors, key=lambda one: one.record.is_sibling, default=None)
        if anchor is not None:
            self._host.spawn(self._adopt_started(anchor, event.container_id), f"attach to {event.name}")

    def on_session_ended(self, session: Session) -> None:
        """Let a waiting container try again: one with the identity of a removed one."""
        self._forget_others()
        if self._waiting:
            self._waiting = False
            self._adopt_missed_sessions(session.record.endpoint)

    def decline(self, sessions: list[Session]) -> None:
        """The user detached these: skip them until they restart."""
        for one in sessions:
            if one.info is not None:
                self._note(one.record, [one.info])

    def _forget_others(self) -> None:
        """Drop the state of projects without a session."""
        known = {(one.record.endpoint.key, one.record.project) for one in self._host.sessions.values()}
        self._seen = {key: seen for key, seen in self._seen.items() if key in known}

    def _note(self, record: SessionRecord, found: list[ContainerInfo]) -> None:
        if record.project is not None:
            seen = self._seen.setdefault((record.endpoint.key, record.project), {})
            seen.update({info.container_id: info.started_at for info in found})

    def _adopt_missed_sessions(self, endpoint: EngineEndpoint) -> None:
        watched: dict[tuple[str | None, str | None], Session] = {}
        # Prefer the session with its own configuration, if it still exists: it comes last.
        for one in sorted(self._host.sessions.values(), key=lambda one: not one.record.is_sibling):
            if one.record.siblings and one.record.endpoint.key == endpoint.key:
                watched[one.record.project, one.info.project_folder if one.info is not None else None] = one
        for (project, _folder), anchor in watched.items():
            self._host.spawn(self._adopt_missed(anchor), f"look for services of {project}")

    async def _adopt_missed(self, anchor: Session) -> None:
        """Attach to services that started while events were missed. The first pass only records: they may have been detached."""
        record = anchor.record
        project, engine = record.project, anchor.engine
        if project is None:
            return
        before = self._seen.get((record.endpoint.key, project))
        before = before if before is None else dict(before)
        found = await self._in_pool(record, lambda: self._services_of(engine, record, project))
        self._note(record, found)
        known = {one.record.container_id for one in self._host.sessions.values()}
        for info in found:
            if (
                before is not None
                and info.container_id not in known
                and before.get(info.container_id) != info.started_at
            ):
                await self._adopt(record, info, Claim())

    async def _adopt_started(self, anchor: Session, container_id: str) -> None:
        info = await self._in_pool(anchor.record, lambda: anchor.engine.inspect(container_id))
        record, engine = anchor.record, anchor.engine
        own = await self._in_pool(record, lambda: self._folder_of(engine, record))
        is_of_it = (info.project, info.project_folder) == (record.project, own)
        if info.running and info.service is not None and is_of_it:
            self._note(anchor.record, [info])
            await self._adopt(anchor.record, info, Claim())

    async def _adopt(self, anchor: SessionRecord, info: ContainerInfo, claim: Claim) -> Session | None:
        """A session for this service; None, with a log line, if it cannot have one."""
        try:
            record = await self._in_pool(anchor, lambda: sibling_of(anchor, info))
        except UsageError as error:
            log.warning("%s is not attached to: %s", info.name, error)
            return None
        try:
            bare = record
            consent_of, writers = self._host.approvals.consent_of, self._host.writers()
            record, warnings = await self._in_pool(
                record, lambda: configure(bare, read_sources(bare.sources, consent=consent_of(bare), writers=writers))
            )
            for warning in warnings if not record.is_sibling else ():
                log.warning("%s: %s", info.name, warning)
        except UsageError as error:
            log.warning("%s: its configuration is left out: %s", info.name, error)
        try:
            before = self._host.session_for(record)
            if not claim.by_hand and before is not None and await self.is_moving(before, record):
                return None
            session = await self.take_up(record, claim)
        except HeldError as error:
            # It is considered again once that session has ended.
            self._waiting = True
            self._seen.get((anchor.endpoint.key, anchor.project or ""), {}).pop(info.container_id, None)
            claim.refused.append(str(error))
            log.warning("%s", error)
            return None
        except AutoforwardError as error:
            log.warning("%s is not attached to: %s", info.name, error)
            return None
        self._host.saw(session.record)
        return session

    def _services_of(self, engine: Engine, anchor: SessionRecord, project: str) -> list[ContainerInfo]:
        """Services in the anchor's own folder only: another folder's project of that name is a different one. Blocks."""
        folder = self._folder_of(engine, anchor)
        return [info for info in services_of(engine, project) if info.project_folder == folder]

    def _folder_of(self, engine: Engine, record: SessionRecord) -> str | None:
        """The folder of its project. Blocks; raises TargetError if its container is gone."""
        session = self._host.session_for(record)
        known = session.info if session is not None and session.record.container_id == record.container_id else None
        return (known or engine.inspect(record.container_id)).project_folder

    async def _in_pool(self, record: SessionRecord, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._host.engines.get(record.endpoint).pool, job)

    def _engine_of(self, record: SessionRecord) -> Engine | None:
        session = self._host.session_for(record)
        return session.engine if session is not None else None


async def _follow_name(session: Session, name: str) -> None:
    with contextlib.suppress(TargetError):  # it has just ended
        await session.reconfigure(lambda record: record.named(name))


def _is_of(session: Session, project: str, folder: str | None) -> bool:
    """By what is known of the session so far."""
    known = session.info is None or session.info.project_folder == folder
    return session.record.project == project and known

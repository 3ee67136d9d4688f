"""Reload the configuration: when a file that a session depends on is saved, the session changes.

One watcher for all sessions, on the folders (editors replace a file by renaming another), none while there is no session.
It tells only that something happened: what counts is the files as they are then, against what was read last. No file is
touched on the control loop, and in a supervisor none in its process: see `foreign.reader`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from autoforward.config.resolve import SourceContents, configure, read_own, read_sources
from autoforward.config.session_record import ConfigSources, SessionRecord, writers_of
from autoforward.core.budget import FILES, Budget
from autoforward.core.errors import TargetError, UsageError
from autoforward.foreign import reader
from autoforward.foreign.children import SILENT
from autoforward.foreign.opening import Look, Signature
from autoforward.net.file_changes import HAS_INOTIFY, Changes
from autoforward.state.event_log import PortEvent
from autoforward.supervisor.session.session import Session
from autoforward.trust.widening import NO_CONSENT, Consent, not_granted
from autoforward.trust.writers import NO_WRITERS, Writers, spelled_both_ways, writer_of

log = logging.getLogger(__name__)

CHANGE_REST_S = 0.2
"""After a change nothing is looked at for this long: a save is several changes, and a container may make any number."""

POLL_S = 1.0
"""How often files are looked at where their folders cannot be watched."""

SETTLE_S = 0.3
"""A file that cannot be read or is gone is looked at again after this, before a word is said: it may be half written."""

RETRY_S = 5.0
"""After a fault, and while files do not answer."""

MAX_TOLD = 5
"""Warnings of one configuration in the log: a container may write another one every two seconds."""

MAX_READERS = 4
"""Sessions whose files are read at once."""

T = TypeVar("T")


class LiveConfiguration:
    """`sessions` gives those that there are; `store` writes one whose record has another configuration now.

    `consent_of` gives what the user has said of a session's workspace. `refresh` says that sessions came, went or have other
    files. Owned by the supervisor: `aclose` ends its tasks.
    """

    def __init__(
        self,
        sessions: Callable[[], Iterable[Session]],
        store: Callable[[Session], Awaitable[None]],
        publish: Callable[[PortEvent], Awaitable[object]],
        consent_of: Callable[[SessionRecord], Consent] = lambda _record: NO_CONSENT,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._publish = publish
        self._consent_of = consent_of
        self._wake = asyncio.Event()
        self._is_polling = False
        self._read: dict[str, _Read] = {}
        """By session id: the files as they were when they were read."""
        self._pool = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="autoforward-files")
        self._task: asyncio.Task[None] | None = None
        self._updating: dict[str, asyncio.Task[None]] = {}
        self._good: dict[str, SourceContents] = {}
        """By session id: what its files said when they were valid last."""
        self._budgets: dict[str, Budget] = {}

    def refresh(self) -> None:
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live configuration")

    async def reconsider(self, session: Session, variables: Mapping[str, str], *, revoked: bool) -> None:
        """The user has said something of its workspace: what its files ask for is decided again; returns once that is done.

        `variables` are values of the user's environment for what has been granted. `revoked`: files that are not valid now
        have nothing to say, for what they said last may be what was taken back.
        """
        key = session.record.session_id
        if revoked:
            self._good[key] = SourceContents()
        while (before := self._updating.get(key)) is not None and not before.done():
            before.cancel()  # it may have asked what the user had said until now
            await asyncio.wait([before])
        self._updating[key] = task = asyncio.create_task(
            self._decide_again(session, variables), name=f"approvals of {session.record.container_name}"
        )
        await asyncio.wait([task])
        self._wake.set()
        if not task.cancelled():  # else another one came after it, and decides with this answer too
            task.result()

    async def _decide_again(self, session: Session, variables: Mapping[str, str]) -> None:
        def change(record: SessionRecord) -> SessionRecord:
            known = {name: variables[name] for name in record.sources.withheld if name in variables}
            withheld = tuple(name for name in record.sources.withheld if name not in known)
            return replace(
                record,
                sources=replace(record.sources, variables={**record.sources.variables, **known}, withheld=withheld),
            )

        try:
            await session.reconfigure(change)
            self._read.pop(session.record.session_id, None)
            await self._apply(session, at_once=True)
            await self._store(session)  # also what a task that was cancelled for this one had still to store
        except TargetError as error:  # it has ended
            log.debug("%s", error)

    async def aclose(self) -> None:
        tasks = [task for task in (self._task, *self._updating.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # What is watched.

    async def _run(self) -> None:
        folders: frozenset[str] = frozenset()
        while True:
            self._wake.clear()
            try:
                folders = await self._poll(folders)
            except Exception:
                log.exception("a fault while configuration files were watched")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), RETRY_S)

    async def _poll(self, folders: frozenset[str]) -> frozenset[str]:
        """Look at the files, and wait until there is a reason to look again; return the folders to watch then."""
        changes = await self._watch(folders)
        try:
            # Watched before the look: what is saved from then on is told.
            survey = await self._survey()
            self._reload_changed(survey)
            if survey.folders == folders and await self._is_woken(survey, changes):
                return folders
        finally:
            if changes is not None:
                changes.close()
        await asyncio.sleep(CHANGE_REST_S)
        return survey.folders

    async def _watch(self, folders: frozenset[str]) -> Changes | None:
        """None: there is nothing to watch, or no way to do so."""
        if not folders or not HAS_INOTIFY:
            return None
        changes = None
        try:
            changes = Changes()
            await self._in_pool(lambda: changes.watch(folders))
        except BaseException as error:
            if changes is not None:
                changes.close()
            if not isinstance(error, OSError):
                raise
            if not self._is_polling:  # out of inotify watches
                log.warning("configuration files are looked at every %g s, not watched: %s", POLL_S, error)
            self._is_polling = True
            return None
        self._is_polling = False
        return changes

    async def _is_woken(self, survey: Survey, changes: Changes | None) -> bool:
        """Wait for a change or a `refresh`; where files do not answer or are not watched, not for long. Whether it was this."""
        waits = [asyncio.ensure_future(self._wake.wait())]
        if changes is not None:
            waits.append(asyncio.ensure_future(changes.happened.wait()))
        timeout_s = RETRY_S if survey.silent else POLL_S if survey.folders and changes is None else None
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._wake.is_set()

    async def _survey(self) -> Survey:
        files = {path: None for session in self._sessions() for path in session.record.sources.files}
        writers = self._writers()
        return await self._in_pool(lambda: survey_files(files, writers))

    async def _survey_of(self, session: Session) -> Survey:
        files, writers = session.record.sources.files, self._writers()
        return await self._in_pool(lambda: survey_files(files, writers))

    def _writers(self) -> Writers:
        return writers_of(session.record for session in self._sessions())

    # What is done.

    def _reload_changed(self, survey: Survey) -> None:
        """Bring up to date each session whose files are not as they were read; in tasks, for one may be busy for long."""
        sessions = {session.record.session_id: session for session in self._sessions()}
        self._read = {key: read for key, read in self._read.items() if key in sessions}
        self._good = {key: good for key, good in self._good.items() if key in sessions}
        self._budgets = {key: budget for key, budget in self._budgets.items() if key in sessions}
        self._updating = {key: task for key, task in self._updating.items() if not task.done()}
        for key, session in sessions.items():
            if key not in self._updating and not self._is_up_to_date(session, survey):
                work = self._bring_up_to_date(session)
                self._updating[key] = asyncio.create_task(
                    work, name=f"configuration of {session.record.container_name}"
                )

    def _is_up_to_date(self, session: Session, survey: Survey) -> bool:
        sources = session.record.sources
        if any(path in survey.silent for path in sources.files):
            return False
        read = self._read.get(session.record.session_id)
        return read is not None and (read.sources, read.state) == (sources, survey.of(sources))

    async def _bring_up_to_date(self, session: Session) -> None:
        """However often the files are saved, they are read once in SETTLE_S."""
        try:
            while session.state != "ended":
                # A container may write its files as often as it likes; what they say once it is their turn counts.
                budget = self._budgets.setdefault(session.record.session_id, Budget(FILES, time.monotonic()))
                await asyncio.sleep(budget.spend(1, time.monotonic()))
                began_s = time.monotonic()
                await self._apply(session)
                survey = await self._survey_of(session)
                if survey.silent or self._is_up_to_date(session, survey):
                    return
                await asyncio.sleep(SETTLE_S - (time.monotonic() - began_s))
        except TargetError as error:  # it has ended
            log.debug("%s", error)
        except Exception:
            log.exception("a fault while the configuration of %s was applied", session.record.container_name)

    async def _apply(self, session: Session, *, at_once: bool = False) -> None:
        before, key = session.record, session.record.session_id
        sources = before.sources
        is_new = key not in self._read
        good, writers = self._good.get(key), self._writers()
        read = await self._in_pool(lambda: self._read_all(before, good, writers))
        if read.problem is not None and not is_new:
            await asyncio.sleep(SETTLE_S)
            if (await self._survey_of(session)).of(sources) != read.state:  # else the problem is what it was
                read = await self._in_pool(lambda: self._read_all(before, good, writers))
        if session.record.sources != sources:  # a command was quicker: its files are the ones that count
            return
        self._read[key] = read
        if read.contents is None:
            # One that is gone when we first look was so for the command too, which has said it.
            if not (is_new and read.is_missing):
                await self._complain(session, read.problem)
            if read.configured is not None:
                fallen_back = read.configured
                await session.reconfigure(lambda record: fallen_back if record == before else record, at_once=at_once)
                await self._store(session)
            return
        self._good[key] = read.contents
        contents, warnings = read.contents, list(read.warnings)

        def change(record: SessionRecord) -> SessionRecord:
            if record.sources != sources:
                return record
            if record == before and read.configured is not None:
                return read.configured
            warnings.clear()
            configured, found = configure(record, contents)
            warnings.extend(found)
            return configured

        is_changed = await session.reconfigure(change, at_once=at_once)
        if read.configured is not None and session.record.sources == read.configured.sources:
            self._read[key] = replace(read, sources=session.record.sources)  # what came of it is read as well
        if is_changed:
            name = session.record.container_name
            log.info("%s: its configuration has changed", name)
            new = [request for request in session.record.requests if request not in before.requests]
            told = [*warnings, *not_granted(new, before.way_out)]
            for warning in told[:MAX_TOLD]:
                log.warning("%s: %s", name, warning)
            if len(told) > MAX_TOLD:
                log.warning("%s: and %d more of these: `autoforward attach` says them", name, len(told) - MAX_TOLD)
            await self._store(session)
        await self._complain(session, None)

    async def _in_pool(self, job: Callable[[], T]) -> T:
        """What has to do with files: in threads that are for nothing else, for these may have to wait."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, job)

    def _read_all(self, record: SessionRecord, good: SourceContents | None, writers: Writers) -> _Read:
        """Blocks on the disk. Where files are not valid, what the user's own say now counts all the same."""
        read = self._read_files(record, writers)
        if read.contents is not None or good is None:
            return read
        try:
            said = read_own(record.sources, consent=self._consent_of(record), writers=writers)
        except UsageError:  # it is these that are not valid
            return read
        contents = replace(
            good,
            user=said.user,
            user_writer=said.user_writer,
            settings_file=said.settings_file,
            settings_writer=said.settings_writer,
            consent=said.consent,
        )
        configured, _ = configure(record, contents)
        return read if configured == record else replace(read, configured=configured)

    def _read_files(self, record: SessionRecord, writers: Writers) -> _Read:
        sources = record.sources
        survey = survey_files(sources.files, writers)
        state = survey.of(sources)
        if survey.silent:
            return _Read(sources, state, problem=f"{min(survey.silent)}: {SILENT}")
        try:
            contents = read_sources(sources, consent=self._consent_of(record), writers=writers)
        except UsageError as error:
            return _Read(sources, state, problem=str(error))
        if contents.config is None and sources.config_file is not None:
            return _Read(sources, state, problem=f"{sources.config_file}: not there any more", is_missing=True)
        configured, warnings = configure(record, contents)
        return _Read(sources, state, contents, configured=configured, warnings=warnings)

    async def _complain(self, session: Session, problem: str | None) -> None:
        """Say once that the configuration in force is not what the files say; None: it is, from now on."""
        if problem == session.config_problem:
            return
        session.config_problem = problem
        if problem is None:
            log.info("%s: its configuration is in order again", session.record.container_name)
            return
        log.warning("%s: its configuration stays as it was: %s", session.record.container_name, problem)
        await self._publish(session.forwarder.session_event("updated", f"the configuration stays as it was: {problem}"))


@dataclass(frozen=True, slots=True)
class Survey:
    """What is where sessions have files. `silent`: those that do not answer. `writers` are spelled both ways."""

    looks: Mapping[str, Look]
    silent: frozenset[str] = frozenset()
    writers: Writers = field(default_factory=dict)

    @property
    def folders(self) -> frozenset[str]:
        return frozenset(folder for look in self.looks.values() for folder in look.folders)

    def of(self, sources: ConfigSources) -> FilesState:
        looks = {path: self.looks.get(path) for path in sources.files}
        return {
            path: None if look is None else (look.signature, self._writer_of(path, look, sources))
            for path, look in looks.items()
        }

    def _writer_of(self, path: str, look: Look, sources: ConfigSources) -> str | None:
        """Where that counts: of the user's own files."""
        return writer_of(look.real, self.writers) if path in (sources.user_file, sources.settings_file) else None


FilesState = Mapping[str, tuple[Signature | None, str | None] | None]
"""By path: what differs when a file has been saved, and which container can write it; None where it does not answer."""


def survey_files(paths: Iterable[str], writers: Writers = NO_WRITERS) -> Survey:
    found = reader.survey(dict.fromkeys(paths))
    looks = {path: look for path, look in found.items() if look is not None}
    return Survey(looks, frozenset(found.keys() - looks.keys()), spelled_both_ways(writers))


@dataclass(frozen=True, slots=True)
class _Read:
    """How the files were before they were read, and what they say or what is wrong.

    `configured` is what the record that they were read for comes to.
    """

    sources: ConfigSources
    state: FilesState
    contents: SourceContents | None = None
    problem: str | None = None
    is_missing: bool = False
    configured: SessionRecord | None = None
    warnings: tuple[str, ...] = ()

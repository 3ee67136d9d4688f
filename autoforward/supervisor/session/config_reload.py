"""Reload the configuration: when a file that a session depends on is saved, the session changes.

One watcher for all sessions, on folders (editors replace a file by renaming another), none without a session. An event
only wakes it: the files' current state is compared with the last read one. No file is touched on the control loop, nor
by the supervisor's own process: see `foreign.reader`.
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
from autoforward.foreign.opening import PathState, Signature
from autoforward.net.file_changes import HAS_INOTIFY, Changes
from autoforward.state.event_log import PortEvent
from autoforward.supervisor.session.session import Session
from autoforward.trust.widening import NO_CONSENT, Consent, not_granted
from autoforward.trust.writers import NO_WRITERS, Writers, spelled_both_ways, writer_of

log = logging.getLogger(__name__)

CHANGE_REST_S = 0.2
"""Delay from a change to the check: a save is several changes, and a container may make any number."""

POLL_S = 1.0
"""How often files are polled where their folders cannot be watched."""

SETTLE_S = 0.3
"""An unreadable or missing file is read again after this before it is reported: it may be half written."""

RETRY_S = 5.0
"""After a fault, and while files do not answer."""

MAX_REPORTED = 5
"""Warnings of one configuration in the log: a container may write another one every two seconds."""

MAX_READERS = 4
"""Sessions whose files are read at once."""

T = TypeVar("T")


class LiveConfiguration:
    """`sessions` returns the current ones; `store` writes a session whose record has changed.

    `consent_of` returns the user's consent for a session's workspace. Call `refresh` when sessions begin, end or have
    other files. Owned by the supervisor: `aclose` ends its tasks.
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
        """By session id: the files' state when they were read."""
        self._pool = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="autoforward-files")
        self._task: asyncio.Task[None] | None = None
        self._updating: dict[str, asyncio.Task[None]] = {}
        self._good: dict[str, SourceContents] = {}
        """By session id: the last valid contents."""
        self._budgets: dict[str, Budget] = {}

    def refresh(self) -> None:
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="live configuration")

    async def reconsider(self, session: Session, variables: Mapping[str, str], *, revoked: bool) -> None:
        """The user has answered for its workspace: decide again what its files ask for; returns once that is done.

        `variables`: values of the user's environment for granted variables. `revoked`: invalid files count as empty,
        because their last valid contents may be what was revoked.
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
        if not task.cancelled():  # else a later one replaced it, and uses this answer too
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
            await self._store(session)  # also stores the pending change of a cancelled task
        except TargetError as error:  # it has ended
            log.debug("%s", error)

    async def aclose(self) -> None:
        tasks = [task for task in (self._task, *self._updating.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # Watching.

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
        """Check the files, and wait for a reason to check again; returns the folders to watch then."""
        changes = await self._watch(folders)
        try:
            # Watch before checking: later saves are reported.
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
        """None: nothing to watch, or no way to watch it."""
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
        """Wait for a change or a `refresh`, briefly if files hang or cannot be watched; returns whether it was one."""
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

    # Applying.

    def _reload_changed(self, survey: Survey) -> None:
        """Reload each session whose files differ from those it read; in tasks, because one may be busy for long."""
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
        """However often the files are saved, they are read once per SETTLE_S."""
        try:
            while session.state != "ended":
                # A container may write its files as often as it likes; the contents at its turn count.
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
            if (await self._survey_of(session)).of(sources) != read.state:  # else the problem is unchanged
                read = await self._in_pool(lambda: self._read_all(before, good, writers))
        if session.record.sources != sources:  # a command was faster: its files count
            return
        self._read[key] = read
        if read.contents is None:
            # A file missing at the first check was missing for the command too, which reported it.
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
            self._read[key] = replace(read, sources=session.record.sources)  # the changed sources count as read
        if is_changed:
            name = session.record.container_name
            log.info("%s: its configuration has changed", name)
            new = [request for request in session.record.requests if request not in before.requests]
            reported = [*warnings, *not_granted(new, before.way_out)]
            for warning in reported[:MAX_REPORTED]:
                log.warning("%s: %s", name, warning)
            if len(reported) > MAX_REPORTED:
                log.warning(
                    "%s: and %d more of these: `autoforward attach` says them", name, len(reported) - MAX_REPORTED
                )
            await self._store(session)
        await self._complain(session, None)

    async def _in_pool(self, job: Callable[[], T]) -> T:
        """Run file operations in dedicated threads, because they may block."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, job)

    def _read_all(self, record: SessionRecord, good: SourceContents | None, writers: Writers) -> _Read:
        """Blocks on the disk. If files are invalid, the user's own files still count."""
        read = self._read_files(record, writers)
        if read.contents is not None or good is None:
            return read
        try:
            said = read_own(record.sources, consent=self._consent_of(record), writers=writers)
        except UsageError:  # the user's own files are invalid
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
        """Report once that the configuration in use is not what the files say; None: it is again."""
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
    """The state of sessions' files. `silent`: paths that do not answer. `writers` are spelled both ways."""

    path_states: Mapping[str, PathState]
    silent: frozenset[str] = frozenset()
    writers: Writers = field(default_factory=dict)

    @property
    def folders(self) -> frozenset[str]:
        return frozenset(folder for path_state in self.path_states.values() for folder in path_state.folders)

    def of(self, sources: ConfigSources) -> FilesState:
        path_states = {path: self.path_states.get(path) for path in sources.files}
        return {
            path: None if path_state is None else (path_state.signature, self._writer_of(path, path_state, sources))
            for path, path_state in path_states.items()
        }

    def _writer_of(self, path: str, path_state: PathState, sources: ConfigSources) -> str | None:
        """Only for the user's own files."""
        return writer_of(path_state.real, self.writers) if path in (sources.user_file, sources.settings_file) else None


FilesState = Mapping[str, tuple[Signature | None, str | None] | None]
"""By path: what changes on a save, and which container can write it; None if it does not answer."""


def survey_files(paths: Iterable[str], writers: Writers = NO_WRITERS) -> Survey:
    found = reader.survey(dict.fromkeys(paths))
    path_states = {path: path_state for path, path_state in found.items() if path_state is not None}
    return Survey(path_states, frozenset(found.keys() - path_states.keys()), spelled_both_ways(writers))


@dataclass(frozen=True, slots=True)
class _Read:
    """The files' state before they were read, and their contents or what is wrong.

    `configured`: the resulting record.
    """

    sources: ConfigSources
    state: FilesState
    contents: SourceContents | None = None
    problem: str | None = None
    is_missing: bool = False
    configured: SessionRecord | None = None
    warnings: tuple[str, ...] = ()

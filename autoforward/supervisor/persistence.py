"""Store the supervisor's sessions and leases, and write the missing ends of a killed supervisor.

Everything that takes the registry's lock runs in one thread, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from autoforward.config.session_record import SessionRecord
from autoforward.state.buffered_registry import BufferedRegistry
from autoforward.state.document import RegistryDocument
from autoforward.state.folder import StatePaths
from autoforward.state.registry import Registry
from autoforward.supervisor.session.session import Session

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 2.0
"""How soon a damaged registry is repaired, and an unwritten one written."""

T = TypeVar("T")


class Persistence:
    """`sessions` is the supervisor's table, by id. Close with `aclose`, which writes what is unwritten."""

    def __init__(self, paths: StatePaths, sessions: Mapping[str, Session], warn: Callable[[str], None]) -> None:
        self._sessions = sessions
        self._warn = warn
        registry = Registry(paths, warn, recover=self._live_document)
        self.registry = BufferedRegistry(registry, warn, live=self._live_document)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="autoforward-disk")
        self._task: asyncio.Task[None] | None = None

    def start_polling(self, beside: Callable[[], Awaitable[None]]) -> None:
        """Check the registry periodically, then call `beside`, which checks the folder's other files."""
        self._task = asyncio.create_task(self._poll(beside), name="registry poll")

    async def stop_polling(self) -> None:
        """Call it before closing what `beside` uses. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def aclose(self) -> None:
        await self.stop_polling()
        await self.run(self.registry.check)
        if self.registry.has_unwritten:
            log.warning("what has changed is lost: %s", self.registry.problem)
        self.thread.shutdown()

    async def run(self, job: Callable[[], T]) -> T:
        """Run `job` in the thread of the registry."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, job)

    async def take_over(self) -> list[SessionRecord]:
        """The sessions of a supervisor that ended; reserves its leases. Raises RegistryError."""
        records: list[SessionRecord] = []

        def change(document: RegistryDocument, now: datetime) -> None:
            document.reserve_rows_of_the_dead(now)
            for row in list(document.sessions):
                try:
                    records.append(SessionRecord.from_json(row))
                except (KeyError, TypeError, ValueError) as error:
                    self._warn(f"a stored session cannot be read and is dropped: {error!r}")
                    document.remove_session(row["id"])

        await self.run(lambda: self.registry.transact(change, strict=True))
        return records

    async def store(self, record: SessionRecord) -> None:
        """Write what the next supervisor needs; nothing for a session that only a foreground command holds."""

        def change(document: RegistryDocument, _now: datetime) -> None:
            if record.is_stored:
                document.upsert_session(record.to_json())
            else:
                document.remove_session(record.session_id)

        await self.run(lambda: self.registry.transact(change))

    async def forget(self, session_ids: Iterable[str]) -> None:
        ids = list(session_ids)

        def change(document: RegistryDocument, _now: datetime) -> None:
            for session_id in ids:
                document.remove_session(session_id)

        await self.run(lambda: self.registry.transact(change))

    async def _poll(self, beside: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                await self.run(self.registry.check)
                await beside()
            except Exception:
                log.exception("a fault while the registry was checked")

    def _live_document(self) -> RegistryDocument:
        """The least that the registry must contain. Called in the disk's thread, so it reads copies."""
        sessions = list(self._sessions.values())
        leases = {lease.id: lease for session in sessions for lease in session.forwarder.leases}
        rows = [session.record.to_json() for session in sessions if session.record.is_stored]
        return RegistryDocument(entries=list(leases.values()), sessions=rows)

"""The registry for a process that holds host ports: trouble with the file never stops a forward.

What cannot be written (disk full, read-only) is remembered, goes into every later transaction, and so is written with
the first that succeeds; `check` is such a one, for a timer. A file that cannot even be read stands still for as long:
decisions then start from what is live.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from autoforward.state.document import Lease, RegistryDocument, RegistryError, Session
from autoforward.state.registry import Registry, RegistryWriteError

log = logging.getLogger(__name__)

TROUBLED_LOCK_TIMEOUT_S = 1.0
"""While there is trouble: a process stuck with the lock delays each forward by this, not by `LOCK_TIMEOUT_S`."""

Change = Callable[[RegistryDocument, datetime], None]


@dataclass(frozen=True, slots=True)
class _Unwritten:
    """What the file lacks; None for an ended session. (A lease is only removed when it expires.)"""

    leases: dict[str, Lease] = field(default_factory=dict)
    sessions: dict[str, Session | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.leases or self.sessions)

    def apply_to(self, document: RegistryDocument) -> None:
        for lease in self.leases.values():
            document.upsert(lease)
        for session_id, session in self.sessions.items():
            if session is None:
                document.remove_session(session_id)
            else:
                document.upsert_session(session)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a document, by id, before a change."""

    leases: dict[str, Lease]
    sessions: dict[str, Session]

    @classmethod
    def of(cls, document: RegistryDocument) -> _Rows:
        return cls({lease.id: lease for lease in document.entries}, {row["id"]: row for row in document.sessions})

    def until(self, after: _Rows) -> _Unwritten:
        sessions: dict[str, Session | None] = {
            key: row for key, row in after.sessions.items() if self.sessions.get(key) != row
        }
        sessions.update(dict.fromkeys(key for key in self.sessions if key not in after.sessions))
        return _Unwritten({key: row for key, row in after.leases.items() if self.leases.get(key) != row}, sessions)


class BufferedRegistry:
    """Thread-safe; every method but `problem` and `has_unwritten` may block on the registry's lock and the disk.

    `warn` gets one sentence when trouble begins or changes. `live` returns what is bound and attached now: the least
    that the file must contain after another process has changed, damaged or removed it.
    """

    def __init__(
        self,
        registry: Registry,
        warn: Callable[[str], None],
        *,
        live: Callable[[], RegistryDocument] = RegistryDocument,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry = registry
        self._warn = warn
        self._live = live
        self._clock = clock
        self._lock = threading.Lock()
        self._unwritten = _Unwritten()
        self._problem: str | None = None

    def __repr__(self) -> str:
        count = len(self._unwritten.leases) + len(self._unwritten.sessions)
        return f"<BufferedRegistry of {self._registry!r}, {count} rows not written>"

    @property
    def problem(self) -> str | None:
        """What is wrong with the file, for people; None if it is fine."""
        return self._problem

    @property
    def has_unwritten(self) -> bool:
        """Whether ending this process now would lose anything."""
        return bool(self._unwritten)

    def transact(self, change: Change, *, strict: bool = False) -> None:
        """Run `change` once on the document; its changes to leases and sessions are written now or later.

        With `strict` a registry that cannot be locked or read, or has a newer version, raises RegistryError before
        `change` runs.
        """
        with self._lock:
            changed = False
            now = self._clock()
            timeout_s = None if self._problem is None else TROUBLED_LOCK_TIMEOUT_S
            try:
                with self._registry.transaction(timeout_s) as document:
                    before = _Rows.of(document)
                    if self._problem is not None or self._registry.has_changed:
                        _add_live(document, self._live())
                    self._change(document, now, change)
                    changed = True
            except RegistryError as error:
                if strict and not isinstance(error, RegistryWriteError):
                    raise
                if not changed:
                    document = self._live()
                    before = _Rows.of(document)
                    self._change(document, now, change)
                self._unwritten = before.until(_Rows.of(document))
                self._trouble(error)
            else:
                self._unwritten = _Unwritten()
                if self._problem is not None:
                    log.info("the registry is in order again")
                self._problem = None

    def check(self) -> None:
        """Write what is unwritten, and repair what another process did to the file. Costs one `stat` if all is well."""
        if self._problem is not None or self._registry.has_changed:
            self.transact(lambda _document, _now: None)

    def _change(self, document: RegistryDocument, now: datetime, change: Change) -> None:
        self._unwritten.apply_to(document)
        document.expire_reserved(now)
        change(document, now)

    def _trouble(self, error: RegistryError) -> None:
        problem = f"{error}; forwards go on, and what has changed is written as soon as that is possible"
        if problem != self._problem:
            self._warn(problem)
        self._problem = problem


def _add_live(document: RegistryDocument, live: RegistryDocument) -> None:
    """Add bound leases and attached sessions, whatever the file says."""
    for lease in live.entries:
        row = document.find(lease.id)
        if row is None or (row.state, row.owner, row.host_port) != (lease.state, lease.owner, lease.host_port):
            document.upsert(lease)
    stored = {row["id"] for row in document.sessions}
    for session in live.sessions:
        if session["id"] not in stored:
            document.upsert_session(session)

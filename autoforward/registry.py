"""The locked JSON registry: which host port belongs to whom, and which sessions to take up again.

`registry.json` is only ever replaced as a whole (temporary file, fsync, rename), so that a reader without the lock
sees either the old or the new document. Writers exclude each other by `registry.lock`, a file of its own: a lock
on the JSON itself would be a lock on an inode that the first rename throws away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoforward.errors import AutoforwardError
from autoforward.model import ForwardKey, LeaseState, Source, Transport
from autoforward.paths import StatePaths

VERSION = 1
LOCK_TIMEOUT_S = 20.0
RESERVATION_LIFE = timedelta(days=30)

# A registry of ten thousand rows has 5 MB; more than this is not ours.
MAX_FILE_BYTES = 64 * 1024 * 1024

# psutil derives start times from the boot time, which Linux moves by a second when the clock is corrected.
_START_TIME_TOLERANCE_S = 2.0

Session = dict[str, Any]


class RegistryError(AutoforwardError):
    """The registry cannot be locked, read or understood."""


class RegistryWriteError(RegistryError):
    """The registry cannot be written (disk full, read-only); what was on disk before is still there."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process; `started` is its start time in seconds since 1970. A pid alone is reused by others."""

    pid: int
    started: float

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie does not."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) > _START_TIME_TOLERANCE_S:
                return False
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.AccessDenied:
            return True
        except (psutil.NoSuchProcess, ValueError, OverflowError):
            return False


def current_process() -> ProcessIdentity:
    """The process that asks."""
    import psutil

    return ProcessIdentity(os.getpid(), round(psutil.Process().create_time(), 2))


@dataclass(frozen=True, slots=True)
class Lease:
    """One entry: a host port and who it is for. Field order is the order of the keys in the file.

    `pid` and `pid_started` name the supervisor that holds (or last held) it, `updated` is RFC 3339 in UTC,
    `identity` is `str(model.Identity)`. `extra` are keys that are not ours, kept as they are.
    """

    host_port: int
    container_id: str
    container_port: int
    workspace: str | None
    pid: int
    label: str | None
    id: str
    host_ip: str
    transport: Transport
    service: str | None
    container_host: str | None
    source: Source
    state: LeaseState
    pid_started: float
    updated: str
    identity: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def owner(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, self.pid_started)

    @property
    def key(self) -> ForwardKey:
        return ForwardKey(self.transport, self.container_host, self.container_port)

    def to_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in _LEASE_KEYS}
        row.update(self.extra)
        return row

    @classmethod
    def from_json(cls, row: object) -> Lease | None:
        """The lease of a row, or None for one that is not ours (keys missing, or of another type)."""
        if not isinstance(row, dict) or not all(_is_valid(row.get(name, _MISSING), name) for name in _LEASE_KEYS):
            return None
        known = {name: row[name] for name in _LEASE_KEYS}
        return cls(**known, extra={key: value for key, value in row.items() if key not in known})


_MISSING = object()
_LEASE_KEYS = tuple(item.name for item in fields(Lease) if item.name != "extra")
_TEXT_KEYS = frozenset({"container_id", "id", "host_ip", "updated", "identity"})
_TEXT_OR_NULL_KEYS = frozenset({"workspace", "label", "service", "container_host"})
_CHOICES: dict[str, tuple[str, ...]] = {
    "transport": ("tcp", "udp"),
    "source": ("declared", "detected", "manual"),
    "state": ("bound", "reserved"),
}


def _is_valid(value: object, key: str) -> bool:
    if key in _TEXT_KEYS:
        return isinstance(value, str)
    if key in _TEXT_OR_NULL_KEYS:
        return value is None or isinstance(value, str)
    if key in _CHOICES:
        return value in _CHOICES[key]
    if key == "pid_started":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return value >= 0 if key == "pid" else 1 <= value <= 65535


@dataclass(slots=True)
class RegistryDocument:
    """What the registry holds. Inside a transaction it is changed in place, through the methods.

    `sessions` are opaque to the registry, apart from their `id`. `foreign_entries` are rows of other tools that
    lack our keys, and `extra` top-level keys that are not ours: both are written back as they were.
    """

    version: int = VERSION
    entries: list[Lease] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    foreign_entries: list[Any] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def find(self, lease_id: str) -> Lease | None:
        return next((lease for lease in self.entries if lease.id == lease_id), None)

    def find_leases(self, identity: str, key: ForwardKey) -> list[Lease]:
        """The leases of (identity, transport, container_host, container_port), last updated first."""
        found = [lease for lease in self.entries if lease.identity == identity and lease.key == key]
        return sorted(found, key=lambda lease: lease.updated, reverse=True)

    def upsert(self, lease: Lease) -> None:
        """Replace the entry with this id where it stands, or append it."""
        for index, present in enumerate(self.entries):
            if present.id == lease.id:
                self.entries[index] = lease
                return
        self.entries.append(lease)

    def mark_reserved(self, lease_id: str, now: datetime) -> Lease | None:
        """A forward ended: its lease stays as `reserved` (a second time changes nothing). None: no such lease."""
        lease = self.find(lease_id)
        if lease is None or lease.state == "reserved":
            return lease
        lease = replace(lease, state="reserved", updated=format_time(now))
        self.upsert(lease)
        return lease

    def expire_reserved(self, now: datetime) -> list[Lease]:
        """Take out the reserved leases that nobody used for 30 days, or whose time cannot be read."""
        expired = []
        for lease in self.entries:
            updated = parse_time(lease.updated)
            if lease.state == "reserved" and (updated is None or now - updated > RESERVATION_LIFE):
                expired.append(lease)
        if expired:
            gone = {lease.id for lease in expired}
            self.entries[:] = [lease for lease in self.entries if lease.id not in gone]
        return expired

    def new_lease_id(self) -> str:
        taken = {lease.id for lease in self.entries}
        while (lease_id := f"fwd-{secrets.token_hex(4)}") in taken:
            pass
        return lease_id

    def find_session(self, session_id: str) -> Session | None:
        return next((row for row in self.sessions if row["id"] == session_id), None)

    def upsert_session(self, session: Session) -> None:
        """Replace the session with this `id` (a text) where it stands, or append it."""
        if not isinstance(session.get("id"), str):
            raise ValueError("a session row needs an id")
        for index, present in enumerate(self.sessions):
            if present["id"] == session["id"]:
                self.sessions[index] = session
                return
        self.sessions.append(session)

    def remove_session(self, session_id: str) -> None:
        self.sessions[:] = [row for row in self.sessions if row["id"] != session_id]


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-01-01T00:00:00.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime | None:
    """The moment of an RFC 3339 time; None for anything else, and for a time without a zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


class CorruptDocumentError(ValueError):
    """The text is not a registry document."""


def parse_document(data: bytes) -> RegistryDocument:
    """Raises CorruptDocumentError for what is no registry, RegistryError for one of a newer version."""
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptDocumentError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CorruptDocumentError("not a JSON object")
    version = document.pop("version", None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CorruptDocumentError(f"bad version {version!r}")
    if version > VERSION:
        raise RegistryError(
            f"the registry has version {version}, and this program knows version {VERSION}",
            hint="a newer autoforward wrote it: use that one, or set AUTOFORWARD_HOME to another folder",
        )
    rows, sessions = document.pop("entries", []), document.pop("sessions", [])
    if not isinstance(rows, list) or not isinstance(sessions, list):
        raise CorruptDocumentError("entries and sessions have to be lists")
    if not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in sessions):
        raise CorruptDocumentError("a session without an id")
    result = RegistryDocument(version, sessions=sessions, extra=document)
    for row in rows:
        lease = Lease.from_json(row)
        if lease is None:
            result.foreign_entries.append(row)
        else:
            result.entries.append(lease)
    return result


def encode_document(document: RegistryDocument) -> bytes:
    """One row a line, for people who look into the file; ASCII, so that any text (file names too) survives."""

    def rows(values: list[Any]) -> str:
        return "[" + ",".join("\n" + json.dumps(value, separators=(",", ":")) for value in values) + "]"

    entries = [lease.to_json() for lease in document.entries] + document.foreign_entries
    extra = "".join(f",\n{json.dumps(key)}:{json.dumps(value)}" for key, value in document.extra.items())
    text = (
        f'{{"version":{document.version},\n"entries":{rows(entries)},\n"sessions":{rows(document.sessions)}{extra}}}\n'
    )
    return text.encode("ascii")


class Registry:
    """The registry of one state folder. Safe to use from any thread; every method may block on the disk.

    `warn` gets one sentence for people. `recover` is called, under the lock, after a corrupt file was set aside,
    and returns the document to go on with (what is live); without it that is an empty one.
    """

    def __init__(
        self,
        paths: StatePaths,
        warn: Callable[[str], None],
        *,
        recover: Callable[[], RegistryDocument] | None = None,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        self._paths = paths
        self._warn = warn
        self._recover = recover
        self._lock_timeout_s = lock_timeout_s

    def __repr__(self) -> str:
        return f"<Registry {self._paths.registry}>"

    def read(self) -> RegistryDocument:
        """What the file holds now, without the lock. A corrupt one is reported and reads as empty.

        Raises RegistryError when it cannot be read or has a newer version.
        """
        data = self._read_file()
        try:
            return RegistryDocument() if data is None else parse_document(data)
        except CorruptDocumentError as error:
            self._warn(f"the registry {self._paths.registry} is corrupt ({error})")
            return RegistryDocument()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[RegistryDocument]:
        """The document, to be changed in place; it is written when the block ends, if it changed.

        Excludes threads and processes. Not reentrant. When the block raises, nothing is written. Raises
        RegistryError (lock not had in time, unreadable, newer version), RegistryWriteError when writing fails.
        """
        with _locked(self._paths, self._lock_timeout_s):
            before = self._read_file()
            document = self._load(before)
            yield document
            after = encode_document(document)
            if after != before and not (before is None and document == RegistryDocument()):
                self._write_file(after)

    def _load(self, data: bytes | None) -> RegistryDocument:
        if data is None:
            return RegistryDocument()
        try:
            return parse_document(data)
        except CorruptDocumentError as error:
            aside = self._set_aside()
            self._warn(f"the registry was corrupt ({error}): set aside as {aside}, starting afresh")
            return self._recover() if self._recover is not None else RegistryDocument()

    def _set_aside(self) -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = self._paths.registry.with_name(f"{self._paths.registry.name}.corrupt-{stamp}")
        try:
            self._paths.registry.rename(aside)
        except OSError as error:
            raise RegistryWriteError(
                f"the corrupt registry {self._paths.registry} cannot be set aside: {error.strerror}"
            ) from error
        return str(aside)

    def _read_file(self) -> bytes | None:
        try:
            with self._paths.registry.open("rb") as file:
                return file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"cannot read the registry {self._paths.registry}: {error.strerror}") from error

    def _write_file(self, data: bytes) -> None:
        # One fixed name: the lock makes us the only writer, and what a killed one left is overwritten.
        temporary = self._paths.registry.with_name(f"{self._paths.registry.name}.tmp")
        try:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._paths.registry)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            _sync_folder(self._paths)
        except OSError as error:
            hint = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
            raise RegistryWriteError(
                f"cannot write the registry {self._paths.registry}: {error.strerror}", hint=hint
            ) from error


def _sync_folder(paths: StatePaths) -> None:
    """Make the rename survive a power cut. Some file systems have no fsync for folders (EINVAL)."""
    descriptor = os.open(paths.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


# POSIX locks belong to the process: two threads (even two Registry objects) would both get one, and the first to
# close any descriptor of the file would release it for both. So each lock file has one thread lock in a process.
_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()


@contextlib.contextmanager
def _locked(paths: StatePaths, timeout_s: float) -> Iterator[None]:
    import fasteners

    path = os.path.realpath(paths.registry_lock)
    with _thread_locks_guard:
        thread_lock = _thread_locks.setdefault(path, threading.Lock())
    busy = RegistryError(
        f"the registry is locked by another process: waited {timeout_s:g} s for {path}",
        hint="see which autoforward processes run, and end the one that hangs",
    )
    deadline_s = time.monotonic() + timeout_s
    if not thread_lock.acquire(timeout=timeout_s):
        raise busy
    try:
        try:
            # fasteners would create it with the umask's mode. Under the thread lock: see above.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            lock = fasteners.InterProcessLock(path)
            remaining_s = max(0.0, deadline_s - time.monotonic())
            acquired = lock.acquire(delay=0.005, max_delay=0.05, timeout=remaining_s)
        except (OSError, threading.ThreadError) as error:
            raise RegistryError(f"cannot lock the registry by {path}: {error}") from error
        if not acquired:
            raise busy
        try:
            yield
        finally:
            lock.release()
    finally:
        thread_lock.release()

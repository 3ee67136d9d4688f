"""The registry document as values: leases, processes, sessions, and its text form. No I/O.

A lease records one host port, sticky for (identity, transport, container_host, container_port).
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from autoforward.core.errors import AutoforwardError
from autoforward.core.model import IN_FOLDER, ForwardKey, LeaseState, Source, Transport

VERSION = 1
RESERVATION_LIFE = timedelta(days=30)
SHORT_RESERVATION_LIFE = timedelta(minutes=10)
SHORT_USE_S = 60.0
"""A port that was forwarded for less than this in total (a debugger's random port) has the short life."""

MAX_RESERVED = 256
"""Reserved leases of one identity; the oldest go beyond this."""

SETTLED_S = 600.0
"""A port that was forwarded on one host port for this long in total has settled there."""

# psutil derives start times from the boot time, which Linux shifts by a second when the clock is corrected.
_START_TIME_TOLERANCE_S = 2.0

Session = dict[str, Any]


class RegistryError(AutoforwardError):
    """The registry cannot be locked, read or understood."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process; `started` is its start time in seconds since 1970, because pids are reused."""

    pid: int
    started: float

    def is_alive(self) -> bool:
        """Whether this process still runs; a zombie does not."""
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
    """This process."""
    import psutil

    return ProcessIdentity(os.getpid(), round(psutil.Process().create_time(), 2))


@dataclass(frozen=True, slots=True)
class Lease:
    """One entry: a host port and its forward. Field order is the order of the keys in the file.

    `pid` and `pid_started` name the supervisor that holds (or last held) it, `updated` is RFC 3339 in UTC, `identity`
    is `str(model.Identity)`. `extra`: unknown keys, kept unchanged.
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

    def held_s(self, now: datetime) -> float | None:
        """Seconds that this host port was forwarded in total; None for a row of an earlier version, without it."""
        held = self.extra.get(HELD_KEY)
        if not isinstance(held, int | float) or isinstance(held, bool):
            return None
        since = parse_time(str(self.extra.get(SINCE_KEY)))
        if self.state != "bound" or since is None:
            return max(0.0, held)
        return max(0.0, held) + max(0.0, (now - since).total_seconds())

    def has_settled(self, now: datetime) -> bool:
        return (self.held_s(now) or 0.0) >= SETTLED_S

    def was_used_within(self, seconds: float, now: datetime) -> bool:
        """Whether it is bound, or was within that time."""
        updated = parse_time(self.updated)
        return self.state == "bound" or (updated is not None and (now - updated).total_seconds() <= seconds)

    @property
    def says_settled(self) -> bool:
        """Whether the file says so, so that it survives any end of the process."""
        held_s = self.extra.get(HELD_KEY)
        return isinstance(held_s, int | float) and held_s >= SETTLED_S

    def reserved(self, now: datetime) -> Lease:
        extra = {key: value for key, value in self.extra.items() if key != SINCE_KEY}
        return replace(self, state="reserved", updated=format_time(now), extra=extra)

    def counted(self, now: datetime) -> Lease:
        """The lease with its forwarded time until `now` recorded; a later kill loses only the time after it."""
        held_s = self.held_s(now)
        if held_s is None:
            return self
        extra = {**self.extra, HELD_KEY: round(held_s, 1), SINCE_KEY: format_time(now)}
        return replace(self, extra=extra)

    @property
    def key(self) -> ForwardKey:
        pin = self.host_port if self.extra.get(ADDITIONAL_KEY) is True else None
        return ForwardKey(self.transport, self.container_host, self.container_port, pin)

    def to_json(self) -> dict[str, Any]:
        row = {name: getattr(self, name) for name in _LEASE_KEYS}
        row.update(self.extra)
        return row

    @classmethod
    def from_json(cls, row: object) -> Lease | None:
        """The lease of a row, or None for another tool's (missing keys, or wrong types)."""
        if not isinstance(row, dict) or not all(_is_valid(row.get(name, _MISSING), name) for name in _LEASE_KEYS):
            return None
        known = {name: row[name] for name in _LEASE_KEYS}
        return cls(**known, extra={key: value for key, value in row.items() if key not in known})


HELD_KEY = "held_s"
SINCE_KEY = "bound_since"
# Marks a lease of an additional forward of its port.
ADDITIONAL_KEY = "additional"

_IN_FOLDER = re.compile(r"(\|compose:[^/]*?)" + IN_FOLDER + r"/.*(?=/[^/]*#\d+$)", re.DOTALL)
"""In the text of an identity: see `model.Identity`."""

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
    """The registry's content. Inside a transaction it is changed in place, through the methods.

    `sessions` are opaque to the registry, except their `id`. `foreign_entries`: rows of other tools, without our keys;
    `extra`: unknown top-level keys. Both are written back unchanged.
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

    def carry_over(self, identity: str) -> None:
        """Leases that an earlier version wrote of a compose service, without the project's folder, go to the first project of
        that name that asks: it shared them with those in other folders.
        """
        before = _IN_FOLDER.sub(r"\1", identity)
        if before != identity:
            self.entries[:] = [
                replace(lease, identity=identity) if lease.identity == before else lease for lease in self.entries
            ]

    def upsert(self, lease: Lease) -> None:
        """Replace the entry with this id in place, or append it."""
        for index, present in enumerate(self.entries):
            if present.id == lease.id:
                self.entries[index] = lease
                return
        self.entries.append(lease)

    def mark_reserved(self, lease_id: str, now: datetime) -> Lease | None:
        """A forward ended: its lease stays as `reserved` (repeating changes nothing). None: no such lease."""
        lease = self.find(lease_id)
        if lease is None or lease.state == "reserved":
            return lease
        self.upsert(lease := lease.counted(now).reserved(now))
        return lease

    def reserve_rows_of_the_dead(self, now: datetime) -> list[Lease]:
        """Reserve the leases of dead processes; returns them."""
        alive: dict[ProcessIdentity, bool] = {}
        dead = []
        for lease in list(self.entries):
            if lease.state == "bound" and lease.owner not in alive:
                alive[lease.owner] = lease.owner.is_alive()
            if lease.state == "bound" and not alive[lease.owner]:
                self.upsert(lease.reserved(now))  # its end is unknown: the last recorded time stays
                dead.append(lease)
        return dead

    def expire_reserved(self, now: datetime) -> list[Lease]:
        """Remove reserved leases that are expired, have an invalid time, or are too many."""
        expired: list[Lease] = []
        kept: dict[str, list[Lease]] = {}
        for lease in self.entries:
            if lease.state != "reserved":
                continue
            updated, held_s = parse_time(lease.updated), lease.held_s(now)
            is_short = held_s is not None and held_s < SHORT_USE_S
            if updated is None or now - updated > (SHORT_RESERVATION_LIFE if is_short else RESERVATION_LIFE):
                expired.append(lease)
            else:
                kept.setdefault(lease.identity, []).append(lease)
        for leases in kept.values():
            if len(leases) > MAX_RESERVED:
                expired += sorted(leases, key=lambda lease: lease.updated)[: len(leases) - MAX_RESERVED]
        if expired:
            gone = {lease.id for lease in expired}
            self.entries[:] = [lease for lease in self.entries if lease.id not in gone]
        return expired

    def new_lease_id(self) -> str:
        taken = {lease.id for lease in self.entries}
        while (lease_id := f"fwd-{secrets.token_hex(4)}") in taken:
            pass
        return lease_id

    def upsert_session(self, session: Session) -> None:
        """Replace the session with this `id` (a text) in place, or append it."""
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
    """Parse an RFC 3339 time; None for anything else, and without a zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


class CorruptDocumentError(ValueError):
    """Not a registry document."""


def parse_document(data: bytes) -> RegistryDocument:
    """Raises CorruptDocumentError for anything else, RegistryError for a newer version."""
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


class DocumentEncoder:
    """Documents to text, one row per line for human readers; ASCII, so that any text (file names too) survives.

    Caches the lines of the last document: of a thousand rows, one has changed. So rows must be treated as immutable:
    replace a row instead of changing it.
    """

    def __init__(self) -> None:
        self._lines: dict[int, tuple[object, str]] = {}

    def encode(self, document: RegistryDocument) -> bytes:
        known, lines = self._lines, {}

        def rows(values: list[Any]) -> str:
            texts = []
            for value in values:
                line = known.get(id(value))  # the row is kept alive with it, so that its id is not reused
                if line is None:
                    row = value.to_json() if isinstance(value, Lease) else value
                    line = value, "\n" + json.dumps(row, separators=(",", ":"))
                lines[id(value)] = line
                texts.append(line[1])
            return "[" + ",".join(texts) + "]"

        entries = rows([*document.entries, *document.foreign_entries])
        sessions = rows(document.sessions)
        extra = "".join(f",\n{json.dumps(key)}:{json.dumps(value)}" for key, value in document.extra.items())
        self._lines = lines
        return f'{{"version":{document.version},\n"entries":{entries},\n"sessions":{sessions}{extra}}}\n'.encode(
            "ascii"
        )

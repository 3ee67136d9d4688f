"""PORT_EVENT: the event, its only encoder, and the log of events.

An event is a fact: it is written afterwards. The schema is `port_event.schema.json` next to this file. `events.jsonl`
holds the bare JSON objects, one per line; stdout has the prefix `PORT_EVENT: `.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from autoforward.core.addresses import is_own_host
from autoforward.core.choices import LaneName
from autoforward.core.masking.command_line import mask_command_line
from autoforward.core.model import AppProtocol, EventName, OnAutoForward, Source, Status, Transport
from autoforward.detection.known_servers import not_http
from autoforward.state.document import format_time
from autoforward.state.event_lines import LINE_PREFIX, all_lines, encode_object, last_seq_in
from autoforward.state.event_shares import kept
from autoforward.state.folder import StatePaths
from autoforward.state.locks import replace_file

DEFAULT_MAX_BYTES = 4 * 1024 * 1024

MAX_UNWRITTEN = 1000
"""Events that wait for disk space; usually at most 1 MB."""

MAX_EVENT_TEXT = 1000
MAX_FOLDER_TEXT = 4096
"""Characters of a text, and of a folder (no path is longer): a label may have megabytes, and the log holds 4."""

_HTTPS_PORTS = frozenset({443, 8443})


@dataclass(frozen=True, slots=True, kw_only=True)
class PortEvent:
    """One event. Field order is key order; the log sets `seq` and `time`.

    `process` may be a raw command line, which is masked when encoded. `url` is computed.
    """

    container_port: int | None = None
    protocol: AppProtocol | None = None
    label: str | None = None
    on_auto_forward: OnAutoForward | None = None
    auto_forwarded: bool = False
    host_port: int | None = None
    host_ip: str | None = None
    description: str | None = None
    open_preview: bool | None = None
    require_local_port: bool | None = None
    elevate_if_needed: bool | None = None
    event: EventName
    seq: int = 0
    time: str = ""
    id: str | None = None
    transport: Transport | None = None
    container_id: str | None = None
    container_name: str | None = None
    workspace_folder: str | None = None
    service: str | None = None
    container_host: str | None = None
    process: str | None = None
    remapped: bool = False
    status: Status | None = None
    reason: str | None = None
    replay: bool = False

    @property
    def url(self) -> str | None:
        if self.host_port is None or self.transport != "tcp":
            return None
        if self.protocol is None and not_http(self.container_port, self.process, self.label) is not None:
            return None
        return url_of(self.host_ip, self.host_port, self.protocol, self.container_port)

    def to_json(self) -> dict[str, Any]:
        """The object with all keys in order; `replay` only if true."""
        values: dict[str, Any] = {}
        for item in fields(self):
            if item.name == "remapped":
                values["url"] = self.url
            value = getattr(self, item.name)
            limit = MAX_FOLDER_TEXT if item.name == "workspace_folder" else MAX_EVENT_TEXT
            if isinstance(value, str) and len(value) > limit:
                value = f"{value[: limit - 1]}…"
            values[_key_of(item.name)] = value
        if self.process is not None:
            values["process"] = mask_command_line(self.process)
        if not self.replay:
            del values["replay"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PortEvent:
        """The event of such an object, with defaults for missing keys."""
        known = {item.name: _key_of(item.name) for item in fields(cls)}
        return cls(**{name: values[key] for name, key in known.items() if key in values})


_KEYS = {"container_port": "port", "host_port": "localPort"}


def _key_of(name: str) -> str:
    first, *rest = name.split("_")
    return _KEYS.get(name) or first + "".join(word.capitalize() for word in rest)


def url_of(host_ip: str | None, host_port: int, protocol: AppProtocol | None, container_port: int | None) -> str:
    """The URL for a browser. Without a protocol, container ports 443 and 8443 mean https."""
    scheme = protocol or ("https" if container_port in _HTTPS_PORTS else "http")
    if host_ip is None or is_own_host(host_ip):
        host = "localhost"
    else:
        host = f"[{host_ip.replace('%', '%25')}]" if ":" in host_ip else host_ip
    return f"{scheme}://{host}:{host_port}"


def line_of(event: PortEvent) -> str:
    """The whole line, without its newline, as in messages of the control socket."""
    return f"{LINE_PREFIX}{encode_object(event.to_json())}"


def encode_line(event: PortEvent) -> str:
    """The whole line for standard output, newline included."""
    return f"{line_of(event)}\n"


def list_row(
    event: PortEvent,
    *,
    target: str,
    source: Source,
    lane: LaneName | None,
    age_s: float,
    connections_active: int = 0,
    connections_total: int = 0,
    connections_refused: int = 0,
    bytes_in: int = 0,
    bytes_out: int = 0,
    last_refusal: str | None = None,
) -> dict[str, Any]:
    """A row of `list --json`: the event's object without `event`, `seq`, `time`, plus the list's own keys."""
    values = event.to_json()
    for key in ("event", "seq", "time"):
        del values[key]
    values.pop("replay", None)
    values.update(
        target=target,
        source=source,
        lane=lane,
        ageSeconds=round(age_s, 1),
        connections={"active": connections_active, "total": connections_total, "refused": connections_refused},
        bytes={"in": bytes_in, "out": bytes_out},
        lastRefusal=last_refusal,
    )
    return values


class EventLog:
    """Appends events to `events.jsonl`, numbers them, and rotates to one `events.jsonl.1`. Thread-safe.

    Rotation keeps a share for each container (`state.event_shares`). `seq` continues after a restart from the file's
    last one. When a line cannot be written (disk full), `warn` is called once until it works again, numbers continue,
    and the last `MAX_UNWRITTEN` lines are written with the next successful one, or by `flush`. One writer per state
    folder: the supervisor.
    """

    def __init__(
        self,
        paths: StatePaths,
        warn: Callable[[str], None],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._paths = paths
        self._warn = warn
        self._clock = clock
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._failing = False
        self._unwritten: deque[bytes] = deque(maxlen=MAX_UNWRITTEN)
        self._last_seq = max(last_seq_in(paths.events), last_seq_in(paths.rotated_events))

    def __repr__(self) -> str:
        return f"<EventLog {self._paths.events} seq {self._last_seq}>"

    @property
    def last_seq(self) -> int:
        return self._last_seq

    def append(self, event: PortEvent) -> PortEvent:
        """Number, date and write the event; returns it as written. Does not raise if the disk is full."""
        with self._lock:
            self._last_seq += 1
            event = replace(event, seq=self._last_seq, time=format_time(self._clock()))
            self._unwritten.append(encode_object(event.to_json()).encode("ascii") + b"\n")
            self._write_all()
            return event

    def flush(self) -> None:
        """Retry unwritten lines."""
        with self._lock:
            self._write_all()

    def _write_all(self) -> None:
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if not self._failing:
                self._warn(f"cannot write {self._paths.events}: {error.strerror}; events are written later")
            self._failing = True
        else:
            self._failing = False

    def _write(self, line: bytes) -> None:
        # Opened each time: events are rare, and another process may have moved the file.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._paths.events, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(line) > self._max_bytes:
                self._rotate()
                os.close(descriptor)
                descriptor = os.open(self._paths.events, flags, 0o600)
                size = 0
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # A writer was killed within a line: end it, so that only that line is lost.
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def _rotate(self) -> None:
        """Keep one of the two files, with a share for each container; without disk space the older one is dropped."""
        paths = self._paths
        try:
            replace_file(paths.rotated_events, kept(lambda: all_lines(paths), self._max_bytes))
        except OSError:
            paths.events.replace(paths.rotated_events)
        else:
            paths.events.unlink()

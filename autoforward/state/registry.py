"""The locked JSON registry: the owner of each host port, and the sessions to restore.

`registry.json` is only replaced as a whole (temporary file, fsync, rename), so that a reader without the lock sees
either the old or the new document. Writers exclude each other by `registry.lock`, a separate file: a lock on the JSON
would be on an inode that the first rename discards.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from autoforward.state.document import (
    CorruptDocumentError,
    DocumentEncoder,
    Lease,
    ProcessIdentity,
    RegistryDocument,
    RegistryError,
    Session,
    current_process,
    format_time,
    parse_document,
    parse_time,
)
from autoforward.state.folder import StatePaths
from autoforward.state.locks import CANNOT_WRITE, locked, replace_file

__all__ = [
    "Lease",
    "ProcessIdentity",
    "Registry",
    "RegistryDocument",
    "RegistryError",
    "RegistryWriteError",
    "Session",
    "current_process",
    "format_time",
    "parse_time",
]

LOCK_TIMEOUT_S = 20.0

_Signature = tuple[int, int, int]

# A registry of ten thousand rows has 5 MB; a larger file is no registry.
MAX_FILE_BYTES = 64 * 1024 * 1024

MAX_SET_ASIDE = 10
"""Corrupt files to keep; the oldest go."""


class RegistryWriteError(RegistryError):
    """The registry cannot be written (disk full, read-only); its former content is still on disk."""


class Registry:
    """The registry of one state folder. Thread-safe; every method may block on the disk.

    `warn` gets one sentence for people. `recover` is called under the lock after a corrupt file was set aside, and
    returns the document to continue with (the live rows); without it that is an empty one.
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
        self._known: _Signature | None = None
        self._encoder = DocumentEncoder()
        self._last: tuple[bytes, RegistryDocument] | None = None
        """The last transaction's result, under the lock: with a thousand rows, parsing again takes 20 ms."""

    def __repr__(self) -> str:
        return f"<Registry {self._paths.registry}>"

    def read(self) -> RegistryDocument:
        """The file's content, without the lock. A corrupt file is reported and reads as empty.

        Raises RegistryError if it cannot be read or has a newer version.
        """
        data = self._read_file()
        try:
            return RegistryDocument() if data is None else parse_document(data)
        except CorruptDocumentError as error:
            self._warn(f"the registry {self._paths.registry} is corrupt ({error})")
            return RegistryDocument()

    @property
    def has_changed(self) -> bool:
        """Whether another process has written, damaged or removed the file since the last transaction."""
        return self._signature() != self._known

    @contextlib.contextmanager
    def transaction(self, lock_timeout_s: float | None = None) -> Iterator[RegistryDocument]:
        """The document, to be changed in place; written when the block ends, if it changed.

        Excludes threads and processes. Not reentrant. If the block raises, nothing is written. Raises RegistryError
        (lock timeout, unreadable, newer version), RegistryWriteError if writing fails.
        """
        with _locked(self._paths, self._lock_timeout_s if lock_timeout_s is None else lock_timeout_s) as unwritable:
            before = self._read_file()
            last, self._last = self._last, None  # if the block raises, it may be half changed
            document = last[1] if last is not None and last[0] == before else self._load(before)
            yield document
            after = self._encoder.encode(document)
            if after != before and not (before is None and document == RegistryDocument()):
                if unwritable is not None:
                    raise self._cannot_write(unwritable)
                self._write_file(after)
            self._known = self._signature()
            self._last = after, document

    def _signature(self) -> _Signature | None:
        try:
            status = self._paths.registry.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

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
        for older in sorted(aside.parent.glob(f"{self._paths.registry.name}.corrupt-*"))[:-MAX_SET_ASIDE]:
            with contextlib.suppress(OSError):
                older.unlink()
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
        try:
            replace_file(self._paths.registry, [data], durable=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RegistryWriteError:
        hint = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        return RegistryWriteError(f"cannot write the registry {self._paths.registry}: {error.strerror}", hint=hint)


@contextlib.contextmanager
def _locked(paths: StatePaths, timeout_s: float) -> Iterator[OSError | None]:
    """Yields None while the lock is held. If the lock file cannot be opened for writing, yields the reason: then no
    process needs the lock, because none can write.
    """
    path = paths.registry_lock
    unwritable: OSError | None = None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, timeout_s))
        except TimeoutError:
            raise RegistryError(
                f"the registry is locked by another process: waited {timeout_s:g} s for {path}",
                hint="see which autoforward processes run, and end the one that hangs",
            ) from None
        except (OSError, threading.ThreadError) as error:
            if not isinstance(error, OSError) or error.errno not in CANNOT_WRITE:
                raise RegistryError(f"cannot lock the registry by {path}: {error}") from error
            unwritable = error
        yield unwritable

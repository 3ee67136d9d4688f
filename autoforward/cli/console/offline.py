"""End stored sessions while no supervisor runs, so that the next one does not restore them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from autoforward.cli.console import output
from autoforward.config.session_record import SessionRecord, meant
from autoforward.core.errors import AutoforwardError
from autoforward.state.document import RegistryDocument
from autoforward.state.event_log import EventLog
from autoforward.state.folder import StatePaths
from autoforward.state.locks import acquire, lock_file
from autoforward.state.missing_ends import log_missing_ends
from autoforward.state.registry import Registry

LOCK_WAIT_S = 0.2


def forget_sessions(
    paths: StatePaths, target: str | None, container_ids: Sequence[str], everything: bool
) -> dict[str, Any] | None:
    """Like the supervisor's `detach`: returns `sessions` by id; no rows, because nothing was bound. Logs the end of
    each forward.

    None if a supervisor runs after all: it is starting or ending. Raises RegistryError, and AutoforwardError if
    nothing can be written.
    """
    try:
        lock = lock_file(paths.supervisor_lock)
        if not acquire(lock, LOCK_WAIT_S):
            return None
    except OSError as error:
        raise AutoforwardError(f"cannot lock {paths.supervisor_lock}: {error.strerror}") from error
    try:
        with Registry(paths, output.warn).transaction() as document:
            ended = _take_out(document, target, container_ids, everything)
        log_missing_ends(paths, EventLog(paths, output.warn))
    finally:
        lock.release()
    return {"rows": [], "sessions": ended}


def _take_out(
    document: RegistryDocument, target: str | None, container_ids: Sequence[str], everything: bool
) -> list[str]:
    ended = []
    records = {str(row["id"]): _record(row) for row in document.sessions}
    called = meant((record for record in records.values() if record is not None), target) if target else []
    for row in list(document.sessions):
        record = records[str(row["id"])]
        if everything or record is None or record.container_id in container_ids or record in called:
            document.remove_session(row["id"])
            ended.append(str(row["id"]))
    document.reserve_rows_of_the_dead(datetime.now(UTC))
    return ended


def _record(row: dict[str, Any]) -> SessionRecord | None:
    """A stored session; None if no supervisor could restore it."""
    try:
        return SessionRecord.from_json(row)
    except (KeyError, TypeError, ValueError):
        return None

"""Ending sessions of a supervisor that is not there any more: on disk, so that the next one does not restore them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from autoforward.cli import output
from autoforward.paths import StatePaths
from autoforward.registry import Registry
from autoforward.settings import SessionRecord, matches


def forget_sessions(
    paths: StatePaths, target: str | None, container_ids: Sequence[str], everything: bool
) -> dict[str, Any]:
    """Like the supervisor's `detach`: `sessions` by id; no rows, for nothing was bound any more."""
    ended: list[str] = []
    now = datetime.now(UTC)
    with Registry(paths, output.warn).transaction() as document:
        for row in list(document.sessions):
            record = _record(row)
            if (
                everything
                or record is None
                or record.container_id in container_ids
                or (target and matches(record, target))
            ):
                document.sessions.remove(row)
                ended.append(str(row.get("id")))
        for lease in list(document.entries):
            if lease.state == "bound" and not lease.owner.is_alive():
                document.mark_reserved(lease.id, now)
    return {"rows": [], "sessions": ended}


def _record(row: dict[str, Any]) -> SessionRecord | None:
    """A stored session; None for one that nobody could restore either."""
    try:
        return SessionRecord.from_json(row)
    except (KeyError, TypeError, ValueError):
        return None

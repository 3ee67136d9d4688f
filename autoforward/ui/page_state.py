"""The page's events: complete pictures of sessions and rows, and counters between two of them. Pure.

Texts may come from a container. The page shows them as text; here they are bounded, and unprintable characters (such as
a change of writing direction) are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autoforward.core.addresses import safe_url
from autoforward.core.text import printable

Json = Mapping[str, Any]

MAX_TEXT = 500
"""Characters of any text. Command lines have at most 200; reasons may name several ports and programs."""

_TEXTS = (
    *("label", "description", "process", "reason", "containerName", "containerHost", "service", "workspaceFolder"),
    *("hostIp", "target"),
)
_PLAIN = ("id", "port", "localPort", "transport", "status", "remapped", "source", "lane", "containerId")

_SESSION_TEXTS = {
    "container_name": "containerName",
    "workspace": "workspaceFolder",
    "problem": "problem",
    "config_problem": "configProblem",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """The state at one moment. `running`: a supervisor runs; `restorable`: one would have sessions."""

    running: bool
    restorable: bool = False
    sessions: tuple[Json, ...] = ()
    rows: tuple[Json, ...] = ()
    counters: tuple[tuple[int, int, int, int, int], ...] = ()
    """Per row: connections (active, total, refused), bytes in and out."""

    def to_json(self) -> dict[str, Any]:
        return {
            "running": self.running,
            "restorable": self.restorable,
            "sessions": self.sessions,
            "rows": [{**row, "counters": counters} for row, counters in zip(self.rows, self.counters, strict=True)],
        }


def picture_of(rows: Sequence[Json], sessions: Sequence[Json]) -> Picture:
    """From rows of `list --json` and sessions of `status --json`."""
    return Picture(
        running=True,
        sessions=tuple(_session(session) for session in sessions),
        rows=tuple(_row(row) for row in rows),
        counters=tuple(_counters(row) for row in rows),
    )


def frames(before: Picture | None, now: Picture) -> bytes:
    """The events for a viewer who has `before`; empty if nothing changed."""
    if before is None or (now.running, now.restorable, now.sessions, now.rows) != (
        *(before.running, before.restorable, before.sessions, before.rows),
    ):
        return encode_event("picture", now.to_json())
    moved = {
        row["key"]: counters
        for row, old, counters in zip(now.rows, before.counters, now.counters, strict=True)
        if old != counters
    }
    return encode_event("traffic", moved) if moved else b""


def encode_event(name: str, values: Json) -> bytes:
    """One server-sent event. ASCII, so that no value contains a line end."""
    return f"event: {name}\ndata: {json.dumps(values, ensure_ascii=True, separators=(',', ':'))}\n\n".encode("ascii")


KEEPALIVE = b": so that either end notices that the other has gone\n\n"


def text(value: object) -> str | None:
    """The text as it may be shown; None if it is no text, or empty."""
    if not isinstance(value, str) or not value:
        return None
    shown = printable(value)
    return shown if len(shown) <= MAX_TEXT else shown[: MAX_TEXT - 1] + "…"


def _row(row: Json) -> Json:
    where = f"{row.get('containerId')} {row.get('containerHost')} {row.get('port')}/{row.get('transport')}"
    return {
        "key": str(row.get("id") or where),
        **{name: row.get(name) for name in _PLAIN},
        **{name: text(row.get(name)) for name in _TEXTS},
        "url": safe_url(row.get("url")),
    }


def _session(session: Json) -> Json:
    lane = session.get("lane")
    return {
        "id": session.get("id"),
        "containerId": session.get("container_id"),
        "state": session.get("state"),
        "lane": lane["name"] if lane else None,
        **{ours: text(session.get(theirs)) for theirs, ours in _SESSION_TEXTS.items()},
    }


def _counters(row: Json) -> tuple[int, int, int, int, int]:
    connections, moved = row["connections"], row["bytes"]
    return connections["active"], connections["total"], connections["refused"], moved["in"], moved["out"]

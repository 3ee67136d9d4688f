"""Which containers can write a user's file: one container's mounts count for all sessions.

The supervisor uses this too, so a mount may hang: see `foreign.reader`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from autoforward.foreign import reader

Writers = Mapping[str, str]
"""Folders and files of this machine that containers can write, each with a container's name."""

NO_WRITERS: Writers = {}

THE_CONTAINER = "the container"
"""The session's own container."""


def writers_of_rows(rows: Iterable[Mapping[str, Any]]) -> Writers:
    """Of stored sessions; those that no supervisor could restore are skipped."""
    found: dict[str, str] = {}
    for row in rows:
        try:
            found |= {str(mount): str(row["container_name"]) for mount in row["sources"]["mounts"]}
        except (KeyError, TypeError):
            continue
    return found


def spelled_both_ways(writers: Writers) -> Writers:
    """With the real paths added to those that contain links."""
    looks = reader.survey(writers) if writers else {}
    return {**{look.real: writers[path] for path, look in looks.items() if look is not None}, **writers}


def writer_of(real: str, writers: Writers) -> str | None:
    """The container that can write a real path, or None. `writers` are spelled both ways. Pure."""
    return next((name for place, name in writers.items() if is_below(real, place)), None)


def is_below(real: str, place: str) -> bool:
    return real == place or real.startswith(place.rstrip("/") + "/")


def named(path: str | None, writer: str | None) -> str:
    """A settings file for people, with the container that can write it, if any."""
    if path is None:
        return ""
    name = os.path.basename(path)  # noqa: PTH119
    return name if writer is None else f"{name} ({writer} can write it)"

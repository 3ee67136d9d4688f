"""Which containers can write a file of the user's: what one has mounted counts for the sessions of all.

A supervisor asks this too, so a mount may hang: see `foreign.reader`.
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
"""That of the session itself."""


def writers_of_rows(rows: Iterable[Mapping[str, Any]]) -> Writers:
    """Of sessions as the registry keeps them. What no supervisor could restore counts for nothing."""
    found: dict[str, str] = {}
    for row in rows:
        try:
            found |= {str(mount): str(row["container_name"]) for mount in row["sources"]["mounts"]}
        except (KeyError, TypeError):
            continue
    return found


def spelled_both_ways(writers: Writers) -> Writers:
    """The same, with the real paths beside those that have links in them."""
    looks = reader.survey(writers) if writers else {}
    return {**{look.real: writers[path] for path, look in looks.items() if look is not None}, **writers}


def writer_of(real: str, writers: Writers) -> str | None:
    """Which container can write what is at a real path, None for none. `writers` are spelled both ways. Pure."""
    return next((name for place, name in writers.items() if is_below(real, place)), None)


def is_below(real: str, place: str) -> bool:
    return real == place or real.startswith(place.rstrip("/") + "/")


def named(path: str | None, writer: str | None) -> str:
    """A file of settings for people, with who can write it where that is a container."""
    if path is None:
        return ""
    name = os.path.basename(path)  # noqa: PTH119
    return name if writer is None else f"{name} ({writer} can write it)"

"""Lines of the event log as JSON objects, read across its two files; nothing here depends on an event's schema."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autoforward.state.folder import StatePaths

LINE_PREFIX = "PORT_EVENT: "

# Bytes at the file's end in which to find the last line; a line has about 700.
_TAIL_BYTES = 64 * 1024


def encode_object(values: Mapping[str, Any]) -> str:
    """Compact JSON on one line, ASCII only: no control characters or line separators."""
    return json.dumps(values, ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def read_events(
    paths: StatePaths, since: int = 0, where: Callable[[Mapping[str, Any]], bool] | None = None
) -> Iterator[dict[str, Any]]:
    """The logged events after number `since` that `where` accepts, oldest first. Torn lines are skipped."""
    last = since
    for line in all_lines(paths):
        values = _parse(line)
        # A rotation during the read can show a line twice.
        if values is None or values["seq"] <= last:
            continue
        last = values["seq"]
        if where is None or where(values):
            yield values


def matches_target(*targets: str) -> Callable[[Mapping[str, Any]], bool]:
    """A filter for events of this container (name, or id from 4 characters), workspace folder or forward id; of any of these."""

    def accepts(values: Mapping[str, Any]) -> bool:
        if any(values.get(key) in targets for key in ("containerName", "workspaceFolder", "id")):
            return True
        container_id = values.get("containerId")
        return isinstance(container_id, str) and any(len(one) >= 4 and container_id.startswith(one) for one in targets)

    return accepts


def all_lines(paths: StatePaths) -> Iterator[bytes]:
    """The lines of both files, oldest first."""
    # The current file first: after a rotation in between, the other name is the same file, read once.
    current = _open(paths.events)
    rotated = _open(paths.rotated_events)
    if current is not None and rotated is not None and os.path.sameopenfile(current, rotated):
        os.close(rotated)
        rotated = None
    files = [os.fdopen(descriptor, "rb") for descriptor in (rotated, current) if descriptor is not None]
    try:
        for file in files:
            yield from file
    finally:
        for file in files:
            file.close()


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("seq"), int):
        return None
    return values


def last_seq_in(path: Path) -> int:
    """The number of the last event in this file; 0 if it has none."""
    descriptor = _open(path)
    if descriptor is None:
        return 0
    with os.fdopen(descriptor, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        for line in reversed(file.read().splitlines()):
            values = _parse(line)
            if values is not None:
                return int(values["seq"])
    return 0

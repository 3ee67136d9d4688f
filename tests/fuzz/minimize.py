"""Which inputs of many are worth keeping: the shortest ones that together reach everything that all of them reach."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Collection
from pathlib import Path
from types import FrameType
from typing import Any

import autoforward
from tests.fuzz.targets import Target

_PACKAGE = str(Path(autoforward.__file__).parent)
Arc = tuple[str, int, int]
"""File, line before (0 at a function's beginning), line."""


def reached(target: Target, data: bytes) -> frozenset[Arc]:
    """The steps from line to line that the input makes the package take."""
    arcs: set[Arc] = set()

    def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_PACKAGE):
            return None
        before = 0

        def step(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal before
            if event == "line":
                arcs.add((file, before, frame.f_lineno))
                before = frame.f_lineno
            return step

        return step

    tracing = sys.gettrace()
    sys.settrace(enter)
    try:
        with contextlib.suppress(Exception):  # a failing input is another's business; here is asked how far it comes
            target(data)
    finally:
        sys.settrace(tracing)
    return frozenset(arcs)


def minimize(target: Target, inputs: Collection[bytes], folder: Path) -> int:
    """Write those worth keeping into `folder`, named by their hashes, and nothing else; how many they are."""
    seen: set[Arc] = set()
    kept: dict[str, bytes] = {}
    for data in sorted(inputs, key=lambda data: (len(data), data)):
        new = reached(target, data) - seen
        if new:
            seen |= new
            kept[hashlib.sha1(data).hexdigest()[:16]] = data
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    for name, data in kept.items():
        (folder / name).write_bytes(data)
    return len(kept)

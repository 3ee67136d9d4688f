"""The child that reads and parses foreign files: frames of JSON on stdin, one answer each on stdout.

It imports next to nothing, has no descriptor but its pipes, and little memory and CPU time. It ends when it is not asked.
"""

from __future__ import annotations

import json
import os
import resource
import select
import threading
import time
from typing import Any

from autoforward.foreign.work import HEADER, perform

MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Addresses, not pages: Python itself takes a tenth of it."""

MAX_CPU_S = 2
"""For one request."""

KEPT_S = 5.0
"""Another request may follow: a session has several files."""

LOOK_S = 1.0
"""For all of the paths that are asked about at once."""

HELD_UP_S = 0.05
"""Without an answer, then the rest is looked at beside."""

MAX_LOOKING = 16


def main() -> None:
    """Serve until stdin ends or nothing comes."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(b"\0")  # from here on it is about files
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    while select.select([0], [], [], KEPT_S)[0] and (request := _read_frame()) is not None:
        used_s = sum(os.times()[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used_s) + 1 + MAX_CPU_S, most))
        try:
            asked = json.loads(request)
            answer = _look(asked["paths"]) if asked["op"] == "look" else perform(asked)
        except MemoryError:
            answer = {"problem": ": takes more memory than it may"}
        data = json.dumps(answer, default=str).encode()
        _write(HEADER.pack(len(data)) + data)


def _look(paths: list[str]) -> dict[str, Any]:
    """As `work` has it, with None for a path that does not answer in LOOK_S; `silent` names these."""
    looks: list[Any] = [None] * len(paths)
    left = iter(list(enumerate(paths)))
    done = threading.Condition()

    def look() -> None:
        for index, path in left:
            looks[index] = perform({"op": "look", "paths": [path]})["looks"][0]
            with done:
                done.notify()

    until_s = time.monotonic() + LOOK_S
    for _ in range(MAX_LOOKING):  # one does it all, unless it is held up
        threading.Thread(target=look, daemon=True).start()
        with done:
            waits_s = until_s - time.monotonic()
            while None in looks and waits_s > 0 and done.wait(min(waits_s, HELD_UP_S)):
                waits_s = until_s - time.monotonic()
        if None not in looks or waits_s <= 0:
            break
    return {"looks": looks, "silent": [path for path, found in zip(paths, looks, strict=True) if found is None]}


def _read_frame() -> bytes | None:
    header = _read(HEADER.size)
    return _read(HEADER.unpack(header)[0]) if header is not None else None


def _read(size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            return None
        data += piece
    return data


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]

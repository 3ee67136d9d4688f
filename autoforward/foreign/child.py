"""The child process that reads and parses foreign files: JSON frames on stdin, one answer each on stdout.

It imports little, has only its pipes, and limited memory and CPU time. It exits when idle.
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
"""Address space, not resident memory: Python itself uses a tenth of it."""

MAX_CPU_S = 2
"""CPU time per request."""

KEPT_S = 5.0
"""Idle time before it exits: a session has several files, so another request may follow."""

STAT_TIMEOUT_S = 1.0
"""For all paths of a request."""

HELD_UP_S = 0.05
"""Without an answer for this long, another thread takes the remaining paths."""

MAX_STAT_THREADS = 16


def main() -> None:
    """Serve until stdin ends or the child is idle."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(b"\0")  # ready: from here on delays are the file's
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    while select.select([0], [], [], KEPT_S)[0] and (request := _read_frame()) is not None:
        used_s = sum(os.times()[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used_s) + 1 + MAX_CPU_S, most))
        try:
            asked = json.loads(request)
            answer = _path_states(asked["paths"]) if asked["op"] == "stat" else perform(asked)
        except MemoryError:
            answer = {"problem": ": takes more memory than it may"}
        data = json.dumps(answer, default=str).encode()
        _write(HEADER.pack(len(data)) + data)


def _path_states(paths: list[str]) -> dict[str, Any]:
    """As `work`, with None for a path that does not answer in STAT_TIMEOUT_S, listed in `silent`."""
    states: list[Any] = [None] * len(paths)
    left = iter(list(enumerate(paths)))
    done = threading.Condition()

    def read() -> None:
        for index, path in left:
            states[index] = perform({"op": "stat", "paths": [path]})["states"][0]
            with done:
                done.notify()

    until_s = time.monotonic() + STAT_TIMEOUT_S
    for _ in range(MAX_STAT_THREADS):  # one suffices, unless a path hangs
        threading.Thread(target=read, daemon=True).start()
        with done:
            waits_s = until_s - time.monotonic()
            while None in states and waits_s > 0 and done.wait(min(waits_s, HELD_UP_S)):
                waits_s = until_s - time.monotonic()
        if None not in states or waits_s <= 0:
            break
    return {"states": states, "silent": [path for path, found in zip(paths, states, strict=True) if found is None]}


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

"""The child that reads and parses foreign files: frames of JSON on stdin, one answer each on stdout.

It imports next to nothing, has no descriptor but its pipes, and little memory and CPU time. It ends when it is not asked.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct

from autoforward.foreign.work import perform

MAX_MEMORY_BYTES = 512 * 1024 * 1024
"""Addresses, not pages: Python itself takes a tenth of it."""

MAX_CPU_S = 2
"""For one request."""

KEPT_S = 5.0
"""Another request may follow: a session has several files."""

HEADER = struct.Struct("!I")


def main() -> None:
    """Serve until stdin ends or nothing comes."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    while select.select([0], [], [], KEPT_S)[0] and (request := _read_frame()) is not None:
        used_s = sum(os.times()[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used_s) + 1 + MAX_CPU_S, most))
        try:
            answer = perform(json.loads(request))
        except MemoryError:
            answer = {"problem": ": takes more memory than it may"}
        data = json.dumps(answer, default=str).encode()
        _write(HEADER.pack(len(data)) + data)


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

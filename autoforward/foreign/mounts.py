"""Detect whether a path leads to a mount that may hang, without touching it: a child process then reads there."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path

MAX_LINKS = 40
"""The kernel's limit."""

_REMOTE = ("fuse", "nfs", "cifs", "smb", "9p", "afs", "autofs", "ceph", "coda", "gluster", "lustre", "virtiofs")
"""Prefixes of file system types that a server or another process implements."""


def may_hang(path: str) -> bool:
    """`path` is absolute. False if mounts are unknown (macOS)."""
    mounts = _remote_mounts()
    return bool(mounts) and leads_into(path, mounts)


def leads_into(path: str, mounts: frozenset[str]) -> bool:
    """Whether one of these mount points is on the way to `path`, links followed."""
    try:
        return any(place in mounts for place in _way(path))
    except OSError:  # more links than the kernel follows: nothing is touched there
        return False


def resolved(path: str) -> str:
    """Resolve an absolute path as far as it exists. Raises OSError for more links than the kernel follows.

    `os.path.realpath` recurses for each link of a chain, which may have thousands.
    """
    *_, real = _way(path)
    return real


def _way(path: str) -> Iterator[str]:
    """All places on the way, each before it is touched; the last is the end. Raises OSError."""
    done, left, links = "/", path.split("/")[::-1], 0
    while left:
        name = left.pop()
        if name == "..":
            done = os.path.dirname(done)  # noqa: PTH120
        if name in ("", ".", ".."):
            continue
        here = os.path.join(done, name)  # noqa: PTH118
        yield here
        try:
            target = os.readlink(here)  # noqa: PTH115
        except (OSError, ValueError):
            done = here
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        done = "/" if target.startswith("/") else done
        left += target.split("/")[::-1]
    yield done


@functools.cache
def _remote_mounts() -> frozenset[str]:
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return frozenset()
    found = set()
    for line in table.splitlines():
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), os.fsdecode(after.partition(b" ")[0])
        if len(fields) > 4 and kind.startswith(_REMOTE):
            point = fields[4].decode("utf-8", "surrogateescape")
            found.add(_unescaped(point))
    return frozenset(found)


def _unescaped(point: str) -> str:
    for code in ("040", "011", "012", "134"):
        point = point.replace(f"\\{code}", chr(int(code, 8)))
    return point

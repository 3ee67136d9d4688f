"""Choose the events to keep when the log is full: the newest of each container, an equal share each. Pure.

So one whose events come all the time cannot take those of others out of the log: with n containers in it, the last 1/n of
the bytes is safe for each, and what some do not need the others have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

_CONTAINER = re.compile(rb'"containerId":"([^"]{0,100})"')


def kept(lines: Callable[[], Iterable[bytes]], max_bytes: int) -> Iterator[bytes]:
    """Of the log's `lines` (read twice, oldest first) those that fit into `max_bytes`, in their order; the last one always.

    A line that is there twice goes on once; one that was cut off is left out.
    """
    sizes: dict[bytes, int] = {}
    last = b""
    for line in _once(lines()):
        container = _container_of(line)
        sizes[container] = sizes.get(container, 0) + len(line)
        last = line
    share = share_of(sizes, max_bytes)
    for line in _once(lines()):
        container = _container_of(line)
        sizes[container] -= len(line)
        if sizes[container] + len(line) <= share or line == last:
            yield line


def share_of(sizes: Mapping[bytes, int], total: int) -> int:
    """The most that each may have, so that all have `total`: those that need less leave theirs to the others."""
    left, among = total, len(sizes)
    for size in sorted(sizes.values()):
        if size * among > left:
            return left // among
        left -= size
        among -= 1
    return total


def _once(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines; after a rotation that was interrupted the end of one file is the next one once more."""
    seen: set[int] = set()
    for line in lines:
        if line.startswith(b"{") and line.endswith(b"}\n") and (key := hash(line)) not in seen:
            seen.add(key)
            yield line


def _container_of(line: bytes) -> bytes:
    found = _CONTAINER.search(line)
    return found[1] if found else b""

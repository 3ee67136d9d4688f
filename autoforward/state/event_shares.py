"""Choose the events to keep when the log is full: the newest of each container, in equal shares. Pure.

So a container with constant events cannot push others' out: with n containers in the log, each keeps at least its last
1/n of the bytes, and unused shares go to the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

_CONTAINER = re.compile(rb'"containerId":"([^"]{0,100})"')


def kept(lines: Callable[[], Iterable[bytes]], max_bytes: int) -> Iterator[bytes]:
    """Those of the log's `lines` (read twice, oldest first) that fit into `max_bytes`, in order; always the last one.

    Duplicates are kept once; torn lines are dropped.
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
    """The largest equal share so that all sum up to `total`, when small ones leave their rest to others."""
    left, among = total, len(sizes)
    for size in sorted(sizes.values()):
        if size * among > left:
            return left // among
        left -= size
        among -= 1
    return total


def _once(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Complete lines; an interrupted rotation repeats the end of one file in the next."""
    seen: set[int] = set()
    for line in lines:
        if line.startswith(b"{") and line.endswith(b"}\n") and (key := hash(line)) not in seen:
            seen.add(key)
            yield line


def _container_of(line: bytes) -> bytes:
    found = _CONTAINER.search(line)
    return found[1] if found else b""

"""Poll descriptors: epoll on Linux, else `selectors`. One mask per descriptor.

Not `selectors` everywhere: its namedtuples took a fifth of the data plane's time under load.
"""

from __future__ import annotations

import select
import selectors
import sys
from typing import Protocol

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


def wait_readable(*fds: int, timeout_s: float | None = None) -> list[int]:
    """Wait until some of these can be read or have ended, and return them; none after `timeout_s`. `select` ends at 1,024."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return [fd for fd, _events in poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)]


class Poller(Protocol):
    """`change` also gets the former mask (0: not watched), so that the poller keeps no table."""

    def change(self, fd: int, before: int, events: int) -> None: ...

    def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
        """The ready (descriptor, READ | WRITE). A hang-up or an error counts as both."""

    def close(self) -> None: ...


if sys.platform == "linux":

    class EpollPoller:
        MAX_EVENTS = 512
        """Per turn; further ready descriptors come in the next."""

        def __init__(self) -> None:
            self._epoll = select.epoll()

        def change(self, fd: int, before: int, events: int) -> None:
            mask = (select.EPOLLIN if events & READ else 0) | (select.EPOLLOUT if events & WRITE else 0)
            if not events:
                self._epoll.unregister(fd)
            elif before:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.register(fd, mask)

        def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
            both, not_in, not_out = READ | WRITE, ~select.EPOLLIN, ~select.EPOLLOUT
            ready = self._epoll.poll(timeout_s, self.MAX_EVENTS)
            # As in `selectors`: anything but plain input or output (a hang-up) counts as both.
            return [
                (fd, both if event & not_in and event & not_out else (READ if event & select.EPOLLIN else WRITE))
                for fd, event in ready
            ]

        def close(self) -> None:
            self._epoll.close()

    def default_poller() -> Poller:
        return EpollPoller()

else:

    class SelectorPoller:
        def __init__(self) -> None:
            self._selector = selectors.DefaultSelector()

        def change(self, fd: int, before: int, events: int) -> None:
            if not events:
                self._selector.unregister(fd)
            elif before:
                self._selector.modify(fd, events)
            else:
                self._selector.register(fd, events)

        def wait(self, timeout_s: float | None) -> list[tuple[int, int]]:
            return [(key.fd, events) for key, events in self._selector.select(timeout_s)]

        def close(self) -> None:
            self._selector.close()

    def default_poller() -> Poller:
        return SelectorPoller()

"""`events` and `logs`: what was written, and what is being written."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from autoforward.cli import client
from autoforward.events import LINE_PREFIX, encode_object, matches_target, read_events
from autoforward.paths import StatePaths
from autoforward.supervisor.spawn import connect_to_supervisor


def print_logged(since: int, target: str | None) -> int:
    """The events that the log holds."""
    accepts = matches_target(target) if target else None
    paths = StatePaths.locate()
    paths.check()
    for values in read_events(paths, since, accepts):
        click.echo(LINE_PREFIX + encode_object(values))
    return 0


def follow_for_ever(since: int | None, target: str | None) -> int:
    """Events as they happen, across supervisors that come and go, until Ctrl-C (exit 0)."""
    paths = StatePaths.locate()
    paths.ensure()
    end_with_reader(sys.stdout.fileno())
    try:
        if since is not None:
            accepts = matches_target(target) if target else None
            for values in read_events(paths, since, accepts):
                since = values["seq"]
                _write_line(LINE_PREFIX + encode_object(values))
        while True:
            for line in client.follow_events(since, target, replay=True):
                _write_line(line)
                # With the next supervisor it goes on where it was, so that nothing in between is missed.
                since = json.loads(line.removeprefix(LINE_PREFIX))["seq"]
            _wait_for_supervisor(paths)
    except KeyboardInterrupt:
        return 0


def end_with_reader(descriptor: int) -> None:
    """Ends this process once nobody reads its output any more: the next line, whose EPIPE would, may be a day away.

    An editor that was killed would leave its follower behind. Nothing is held here that would have to be cleaned up.
    """
    poller = select.poll()
    poller.register(descriptor, 0)  # POLLERR (pipe, socket) and POLLHUP (terminal) are always told

    def wait() -> None:
        if poller.poll():
            os._exit(0)

    threading.Thread(target=wait, daemon=True, name="reader").start()


def _write_line(line: str) -> None:
    """Whoever reads us over a pipe wants each line now."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _wait_for_supervisor(paths: StatePaths) -> None:
    """Until there is a control socket again. Started before the first look, the watch misses nothing."""
    import watchfiles

    folder = paths.supervisor_socket.parent
    for _changes in watchfiles.watch(
        folder, recursive=False, rust_timeout=1000, yield_on_timeout=True, raise_interrupt=True, debounce=50
    ):
        sock = connect_to_supervisor(paths)
        if sock is not None:
            sock.close()
            return


def print_log(target: str | None, follow: bool, count: int) -> int:
    """The last lines of the supervisor's log, those that name `target`; then, with `follow`, what is added."""
    paths = StatePaths.locate()
    paths.check()
    path = paths.supervisor_log
    words = _words_for(target)

    def wanted(line: str) -> bool:
        return not words or any(word in line for word in words)

    last: deque[str] = deque(maxlen=count)
    lines = _lines_of(path, follow, on_caught_up=lambda: _flush(last))
    try:
        for line, live in lines:
            if not wanted(line):
                continue
            if live:
                _write_line(line)
            else:
                last.append(line)
    except KeyboardInterrupt:
        return 0
    _flush(last)
    return 0


def _flush(last: deque[str]) -> None:
    while last:
        click.echo(last.popleft())


def _words_for(target: str | None) -> list[str]:
    """What a log line about this target may call it: its name and the ids of its forwards."""
    if target is None:
        return []
    rows = client.ask({"op": "list", "target": target}, start=False)
    words = {target}
    for row in rows["rows"] if rows else ():
        words |= {str(row["containerName"]), *([str(row["id"])] if row["id"] else [])}
    return sorted(words)


def _lines_of(path: Path, follow: bool, on_caught_up: Callable[[], None]) -> Iterator[tuple[str, bool]]:
    """(line, live) of the rotated and the current file, then what is appended, across any rotation that is seen in time."""
    tail = _Tail(path)
    for line in tail.read():
        yield line, False
    if not follow:
        return
    import watchfiles

    on_caught_up()
    for _changes in watchfiles.watch(
        path.parent,
        recursive=False,
        raise_interrupt=True,
        debounce=50,
        step=20,
        rust_timeout=1000,
        yield_on_timeout=True,
    ):
        for line in tail.read():
            yield line, True


class _Tail:
    """How far the log has been read: in which file, which may have another name by now, and how many bytes of it."""

    def __init__(self, path: Path) -> None:
        self._files = (path, path.with_name(path.name + ".1"))
        self._inode: int | None = None
        self._position = 0

    def read(self) -> Iterator[str]:
        """Whole lines that were not read before, oldest first."""
        opened: dict[int, BinaryIO] = {}
        with contextlib.ExitStack() as stack:
            # The current file first: if it is rotated in between, the other name leads to the same file, read once.
            for path in self._files:
                with contextlib.suppress(FileNotFoundError):
                    found = stack.enter_context(path.open("rb"))
                    opened.setdefault(os.fstat(found.fileno()).st_ino, found)
            inodes = list(reversed(opened))
            for inode in inodes[inodes.index(self._inode) if self._inode in inodes else 0 :]:
                file = opened[inode]
                if inode != self._inode:
                    self._inode, self._position = inode, 0
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._position += len(line)
                    yield line.decode("utf-8", "replace").rstrip("\n")

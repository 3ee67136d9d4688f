"""`events`: what was written, and what is being written."""

from __future__ import annotations

import json
import os
import select
import sys
import threading

from autoforward.cli import client
from autoforward.cli.printing import show
from autoforward.events import LINE_PREFIX, encode_object, matches_target, read_events
from autoforward.paths import StatePaths
from autoforward.supervisor.spawn import connect_to_supervisor


def print_logged(since: int, target: str | None) -> int:
    """The events that the log holds."""
    accepts = matches_target(target) if target else None
    paths = StatePaths.locate()
    paths.check()
    for values in read_events(paths, since, accepts):
        show(LINE_PREFIX + encode_object(values))
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
                show(LINE_PREFIX + encode_object(values))
        while True:
            for line in client.follow_events(since, target, replay=True):
                show(line)
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

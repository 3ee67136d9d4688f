"""`autoforward events`: print the logged PORT_EVENT lines, or follow new ones."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from autoforward.cli.console import supervisor_client
from autoforward.cli.console.places import check_known, session_name, warn_unknown
from autoforward.cli.console.printing import show
from autoforward.control.start import connect_to_supervisor
from autoforward.state.event_lines import LINE_PREFIX, encode_object, matches_target, read_events
from autoforward.state.folder import StatePaths


def print_logged(since: int, target: str | None) -> int:
    """Print the events of the log. Raises TargetError for an unknown target without events."""
    name = session_name(target)
    paths = StatePaths.locate()
    paths.check()
    is_there = False
    for values in read_events(paths, since, _accepts(target, name)):
        is_there = True
        show(LINE_PREFIX + encode_object(values))
    if not is_there and target is not None and name is not None:
        check_known(target, name)
    return 0


def _accepts(target: str | None, name: str | None) -> Callable[[Mapping[str, Any]], bool] | None:
    """A filter by target. A workspace without a session is in the log under the path of its label."""
    if target is None or name is None:
        return None
    from autoforward.foreign.folders import spellings
    from autoforward.foreign.reader import is_folder

    return matches_target(name, *(spellings(target) if is_folder(target) else ()))


def follow_forever(since: int | None, target: str | None) -> int:
    """Print events as they happen, across restarts of the supervisor, until Ctrl-C (exit 0)."""
    paths = StatePaths.locate()
    paths.ensure()
    said, target = target, session_name(target)
    if said is not None and target is not None and next(read_events(paths, 0, _accepts(said, target)), None) is None:
        warn_unknown(said, target)
    end_with_reader(sys.stdout.fileno())
    try:
        if since is not None:
            for values in read_events(paths, since, _accepts(said, target)):
                since = values["seq"]
                show(LINE_PREFIX + encode_object(values))
        while True:
            for line in supervisor_client.follow_events(since, target, replay=True):
                show(line)
                # Continue with the next supervisor at the last `seq`, so that no event is missed.
                since = json.loads(line.removeprefix(LINE_PREFIX))["seq"]
            _wait_for_supervisor(paths)
    except KeyboardInterrupt:
        return 0


def end_with_reader(descriptor: int) -> None:
    """End this process once its output has no reader: the next line, which would fail with EPIPE, may be a day away.

    An editor that was killed would leave its follower behind. The process holds nothing that needs cleaning up.
    """
    poller = select.poll()
    poller.register(descriptor, 0)  # poll() always reports POLLERR (pipe, socket) and POLLHUP (terminal)

    def wait() -> None:
        if poller.poll():
            os._exit(0)

    threading.Thread(target=wait, daemon=True, name="reader").start()


def _wait_for_supervisor(paths: StatePaths) -> None:
    """Block until a control socket exists. The watch starts before the first check, so it misses nothing."""
    import watchfiles

    folder = paths.supervisor_socket.parent
    for _changes in watchfiles.watch(
        folder, recursive=False, rust_timeout=1000, yield_on_timeout=True, raise_interrupt=True, debounce=50
    ):
        sock = connect_to_supervisor(paths)
        if sock is not None:
            sock.close()
            return

"""`autoforward ui`: serves the page in the foreground until Ctrl-C, and opens it. What it serves is in `autoforward.ui`."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

from autoforward.cli import client, output
from autoforward.cli.opening import open_and_wait
from autoforward.cli.printing import show
from autoforward.errors import AutoforwardError, PortUnavailableError
from autoforward.paths import StatePaths
from autoforward.sockets import BoundPair, HostPortError, HostPortTakenError, bind_pair
from autoforward.ui.feed import Feed
from autoforward.ui.keys import Keys
from autoforward.ui.server import PageServer

TRIES = 50
"""Numbers that are tried when none is asked for: the kernel names one that is free on 127.0.0.1, `::1` may have an owner."""


def serve_page(port: int | None, open_it: bool) -> int:
    """Exit status 0, after Ctrl-C or SIGTERM. Raises PortUnavailableError for a port that was asked for."""
    paths = StatePaths.locate()
    # Like `list`: sessions of a supervisor that was killed are taken up again, and none is started for nothing.
    client.ask({"op": "ping"}, start=client.has_stored_sessions(paths))
    try:
        pair = _free_pair() if port is None else bind_pair("127.0.0.1", port)
    except HostPortError as error:
        raise PortUnavailableError(str(error), hint="without --port a free one is taken") from error
    try:
        asyncio.run(_serve(pair, paths, open_it))
    finally:
        pair.close()
    return 0


async def _serve(pair: BoundPair, paths: StatePaths, open_it: bool) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    keys = Keys()
    server = PageServer(pair, Feed(paths, lambda: client.has_stored_sessions(paths)), keys)
    await server.start()
    try:
        show(f"{server.url}#{keys.token}")
        output.say("Your forwards are at this address, for you alone, until Ctrl-C.")
        if open_it:
            await asyncio.to_thread(_open, f"{server.url}#{keys.new_code(time.monotonic())}")
        await ending.wait()
    finally:
        await server.aclose()


def _open(url: str) -> None:
    """What cannot be opened can still be opened by hand."""
    try:
        open_and_wait(url)
    except AutoforwardError as error:
        output.warn(str(error), hint=error.hint)


def _free_pair() -> BoundPair:
    for _attempt in range(TRIES - 1):
        try:
            return bind_pair("127.0.0.1", _some_port())
        except HostPortTakenError:
            continue
    return bind_pair("127.0.0.1", _some_port())


def _some_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

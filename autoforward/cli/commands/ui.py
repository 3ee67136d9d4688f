"""`autoforward ui`: serve the page in the foreground until Ctrl-C, and open it. The page is in `autoforward.ui`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from autoforward.cli.console import output, supervisor_client
from autoforward.cli.console.browser import open_and_wait
from autoforward.cli.console.printing import show
from autoforward.config.environment import SessionEnvironment
from autoforward.core.errors import AutoforwardError, PortUnavailableError
from autoforward.net.bound_pair import BoundPair, HostPortError, HostPortTakenError, bind_pair
from autoforward.state.folder import StatePaths
from autoforward.ui.access_token import CODE_LASTS_S, Keys
from autoforward.ui.doorway import folder_for, make_doorway
from autoforward.ui.http_server import PageServer
from autoforward.ui.supervisor_feed import Feed

UNSEEN_S = 15.0
"""A browser that has not requested the page by then may be unable to read the file."""

TRIES = 50
"""Attempts without `--port`: the kernel names a port that is free on 127.0.0.1; `::1` may have an owner."""


def serve_page(port: int | None, open_it: bool) -> int:
    """Exit status 0, after Ctrl-C or SIGTERM. Raises PortUnavailableError if `port` is taken."""
    paths = StatePaths.locate()
    # As in `list`: sessions of a killed supervisor are restored; no supervisor is started for nothing.
    supervisor_client.ask({"op": "ping"}, start=supervisor_client.has_stored_sessions(paths))
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
    server = PageServer(pair, Feed(paths, lambda: supervisor_client.has_stored_sessions(paths)), keys)
    await server.start()
    leading: asyncio.Task[None] | None = None
    try:
        show(f"{server.url}#{keys.token}")
        output.say("Your forwards are on this page, for you alone, until Ctrl-C:")
        if open_it:
            leading = asyncio.create_task(_lead_browser(paths, server.url, keys), name="leading a browser")
        await ending.wait()
    finally:
        if leading is not None:
            leading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leading
        await server.aclose()


async def _lead_browser(paths: StatePaths, url: str, keys: Keys) -> None:
    """Open the page, and remove the file with its key once it was used. On failure the user can open the URL by hand."""
    seen = asyncio.Event()
    keys.on_code_used = seen.set
    try:
        folder = await asyncio.to_thread(_doorway_folder, paths)
        doorway = make_doorway(folder, f"{url}#{keys.new_code(time.monotonic())}")
        try:
            if not await asyncio.to_thread(open_and_wait, doorway):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNSEEN_S):
                    await seen.wait()
            if not seen.is_set():
                output.warn("no browser has shown the page yet", hint="open the address above by hand")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CODE_LASTS_S - UNSEEN_S):
                        await seen.wait()
        finally:
            doorway.unlink(missing_ok=True)
    except AutoforwardError as error:
        output.warn(str(error), hint=error.hint)
    except OSError as error:
        output.warn(f"the page is not opened: {error.strerror or error}", hint="open the address above by hand")


def _doorway_folder(paths: StatePaths) -> Path:
    paths.ensure()
    return folder_for(SessionEnvironment.capture(os.environ), paths.home, Path.home())


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

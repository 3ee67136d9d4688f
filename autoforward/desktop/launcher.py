"""The user's desktop: a browser for a URL, a notification. Nothing here blocks, raises, or exceeds its limits.

Each is a child process with the environment of its session, in a thread that starts, awaits and reaps it.
Notifications have a child too: sessions may have different buses, a bus that does not answer harms no other session,
and the supervisor stays small. Threads are daemons: a running browser does not keep the supervisor alive, nor ends
with it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from autoforward.config.environment import SESSION_VARIABLES, SessionEnvironment

log = logging.getLogger(__name__)

MAX_OPENERS = 16
"""Openers still running. Without a running browser the opener becomes it, so none is killed."""

MAX_NOTIFIERS = 4
NOTIFIER_TIMEOUT_S = 10.0
"""A notification takes about 0.1 s; after this it is given up."""


class Desktop:
    """`open_url` and `show` return at once. Failures are logged."""

    def __init__(self) -> None:
        self._openers = threading.BoundedSemaphore(MAX_OPENERS)
        self._notifiers = threading.BoundedSemaphore(MAX_NOTIFIERS)

    def open_url(self, url: str, environment: SessionEnvironment) -> None:
        argv = [*opener(environment, sys.platform), url]
        if not self._start(self._openers, lambda: _open(argv, environment)):
            log.warning("%s is not opened: %d openers still run", url, MAX_OPENERS)

    def show(self, title: str, body: str, environment: SessionEnvironment) -> None:
        if not self._start(self._notifiers, lambda: _show(title, body, environment)):
            log.debug("no notification: %d are on their way", MAX_NOTIFIERS)

    @staticmethod
    def _start(slots: threading.BoundedSemaphore, job: Callable[[], None]) -> bool:
        if not slots.acquire(blocking=False):
            return False

        def run() -> None:
            try:
                job()
            finally:
                slots.release()

        threading.Thread(target=run, name="autoforward-desktop", daemon=True).start()
        return True


def opener(environment: SessionEnvironment, platform: str) -> list[str]:
    """The command to append a URL to: the user's own program, else the platform's, else Python's."""
    if environment.browser is not None:
        return [environment.browser]
    if platform == "darwin":
        return ["/usr/bin/open"]
    found = shutil.which("xdg-open")
    return [found] if found else [sys.executable, "-P", "-m", "webbrowser"]


def child_environment(environment: SessionEnvironment) -> dict[str, str]:
    """The supervisor's few variables, without autoforward's and the session variables, then the session's."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in SESSION_VARIABLES and not name.startswith("AUTOFORWARD_")
    }
    return ours | environment.to_json()


def start_opener(argv: Sequence[str], environment: SessionEnvironment) -> subprocess.Popen[bytes]:
    """Run it in a session of its own, without inherited descriptors; the caller reaps it. Raises OSError."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=child_environment(environment),
        start_new_session=True,
    )


def _open(argv: list[str], environment: SessionEnvironment) -> None:
    try:
        process = start_opener(argv, environment)
    except OSError as error:
        log.warning("%s is not opened: cannot run %s: %s", argv[-1], argv[0], error.strerror)
        return
    log.info("opening %s with %s", argv[-1], argv[0])
    status = process.wait()
    if status:
        log.warning("%s ended with status %d", argv[0], status)


def _show(title: str, body: str, environment: SessionEnvironment) -> None:
    argv = [sys.executable, "-P", "-m", "autoforward.desktop.notifier"]
    try:
        done = subprocess.run(
            argv,
            input=json.dumps({"title": title, "body": body}).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(environment),
            start_new_session=True,
            timeout=NOTIFIER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.debug("no notification: %s", error)
        return
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"]
        log.debug("no notification: %s", lines[-1][:500])

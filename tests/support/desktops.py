"""Desktops for tests: a browser that records its calls, and a bus with somebody who takes notifications."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.support.containers import eventually

_BROWSER = """#!{python} -IS
import json, os, sys
line = json.dumps({{"argv": sys.argv[1:], "environment": dict(os.environ)}}) + "\\n"
with open({record!r}, "a") as file:
    file.write(line)
"""


class FakeBrowser:
    """A program that writes down each of its calls. `path` is what AUTOFORWARD_BROWSER names."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "browser"
        self._record = folder / "browser.calls"
        self.path.write_text(_BROWSER.format(python=sys.executable, record=str(self._record)))
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[dict[str, object]]:
        lines = self._record.read_text().splitlines(keepends=True) if self._record.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def urls(self) -> list[object]:
        """The one argument of each call."""
        urls = []
        for call in self.calls:
            [url] = call["argv"]  # type: ignore[misc]
            urls.append(url)
        return urls

    def wait(self, count: int) -> list[object]:
        """The URLs, as soon as there are so many."""
        eventually(lambda: len(self.calls) >= count, timeout_s=20, what=f"{count} calls of the browser")
        return self.urls


class NotificationServer:
    """The server as a child. `shown` grows as notifications come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._lines = process.stdout
        self.address: str = json.loads(self._lines.readline())["address"]
        self.shown: list[dict[str, str]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self._lines:
            self.shown.append(json.loads(line))

    @property
    def environment(self) -> dict[str, str]:
        """What a program on this desktop has; the display is never looked at."""
        return {"DBUS_SESSION_BUS_ADDRESS": self.address, "DISPLAY": ":99"}

    def wait(self, count: int) -> list[dict[str, str]]:
        eventually(lambda: len(self.shown) >= count, timeout_s=20, what=f"{count} notifications")
        return self.shown


def why_no_notifications() -> str | None:
    """Why there can be no such server here; None if there can."""
    if sys.platform != "linux":
        return "notifications go over D-Bus on Linux only"
    return None if shutil.which("dbus-daemon") else "no dbus-daemon (Debian: the package `dbus-daemon`)"


@contextlib.contextmanager
def notification_server() -> Iterator[NotificationServer]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.notification_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        server = NotificationServer(process)
        try:
            yield server
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
            server.reader.join(20)

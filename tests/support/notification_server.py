"""A private session bus with a server of notifications on it, which tells on standard output what it was asked to show.

`python -m tests.support.notification_server`: prints `{"address": …}`, then one line of JSON for each Notify.
Ends with its stdin.
"""

# Annotations of methods are D-Bus signatures here, so no `from __future__ import annotations`.
# ruff: noqa: F722, F821, N802

import asyncio
import json
import subprocess
import sys

from dbus_fast import NameFlag, RequestNameReply
from dbus_fast.aio import MessageBus
from dbus_fast.service import ServiceInterface, method

NAME, PATH = "org.freedesktop.Notifications", "/org/freedesktop/Notifications"


class Notifications(ServiceInterface):
    @method()
    def Notify(
        self,
        app_name: "s",
        _replaces_id: "u",
        _icon: "s",
        summary: "s",
        body: "s",
        _actions: "as",
        _hints: "a{sv}",
        _timeout: "i",
    ) -> "u":
        print(json.dumps({"app": app_name, "title": summary, "body": body}), flush=True)
        return 1

    @method()
    def GetCapabilities(self) -> "as":
        return ["body", "body-markup"]

    @method()
    def GetServerInformation(self) -> "ssss":
        return ["tests", "autoforward", "1", "1.2"]


async def serve(address: str) -> None:
    bus = await MessageBus(bus_address=address).connect()
    bus.export(PATH, Notifications(NAME))
    assert await bus.request_name(NAME, NameFlag.DO_NOT_QUEUE) == RequestNameReply.PRIMARY_OWNER
    print(json.dumps({"address": address}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    bus.disconnect()


def main() -> None:
    with subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as daemon:
        try:
            assert daemon.stdout is not None
            asyncio.run(serve(daemon.stdout.readline().strip()))
        finally:
            daemon.terminate()


if __name__ == "__main__":
    main()
